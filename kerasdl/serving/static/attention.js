// The words of a caption, and for each where in the picture it was looked.

import { button, element, percent, picture } from "./dom.js"

const DARK = 215 // of 255, where the model looked least

/** The outputs are `weights` (word, row, column), `words` and, if the model gives them, `log_probabilities`. */
export function attention(b64, { weights: [maps], words: [words], log_probabilities: logs }, caption) {
  const veil = element("canvas", { className: "veil" })
  const said = element("p", { className: "status" })
  const told = words.map((word, index) => [word, index]).filter(([word]) => word) // The end has no word.

  function show(index) {
    const map = maps[index]
    veil.height = map.length
    veil.width = map[0].length
    const context = veil.getContext("2d")
    const pixels = context.createImageData(veil.width, veil.height)
    const weights = map.flat()
    const least = Math.min(...weights)
    const span = Math.max(...weights) - least || 1
    weights.forEach((weight, place) => pixels.data[4 * place + 3] = DARK * (1 - (weight - least) / span))
    context.putImageData(pixels, 0, 0)
    buttons.forEach((other, place) => other.setAttribute("aria-pressed", told[place][1] === index))
    const share = logs ? `, probability ${percent(Math.exp(logs[0][index]))}` : ""
    said.textContent = `Attention for “${words[index]}”${share}`
  }

  function hide() {
    veil.width = veil.width // empties it
    buttons.forEach(other => other.setAttribute("aria-pressed", false))
    said.textContent = "Point at a word, or choose it, to see where the model looked"
  }

  const buttons = told.map(([word, index]) => {
    const look = () => show(index)
    return button(word, look, { onpointerenter: look, onfocus: look })
  })
  const sentence = element("div", { className: "sentence", role: "group", "aria-label": "Words of the caption" }, ...buttons)
  sentence.onpointerleave = event => event.pointerType === "mouse" && !sentence.contains(document.activeElement) && hide()
  hide()
  return element("div", { className: "attention" },
    element("div", { className: "frame" }, picture(b64, caption), veil), element("div", {}, sentence, said))
}
