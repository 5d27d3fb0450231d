// Copies the commands of /docs.

for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const command = button.nextElementSibling
    getSelection().selectAllChildren(command)
    await navigator.clipboard?.writeText(command.innerText)
    button.textContent = "Copied"
  })
}
