// Shows the models that are served, one at a time, as the address says behind its #.

import { loadModels, send, useKey } from "./api.js"
import { element } from "./dom.js"
import { signatureForm, typeOf } from "./form.js"
import { PANELS } from "./panels.js"

const AGAIN = 2000 // milliseconds between two questions for models that are not ready

const at = id => document.getElementById(id)
const views = new Map() // what was typed and answered stays while another model is shown
let models = []
let waiting = 0

async function load() {
  clearTimeout(waiting)
  at("trouble").textContent = ""
  try {
    models = await loadModels()
    at("key").hidden = true
  } catch (error) {
    models = error.status === 401 ? [] : models
    if (error.status === 401) askForKey(error)
    else at("trouble").textContent = error.message
    return
  }
  for (const id of views.keys()) {
    if (!models.some(model => viewName(model) === id)) views.delete(id)
  }
  show()
  await watch()
}

function askForKey(error) {
  at("docs").hidden = true // a link shows no key
  at("key").hidden = false
  if (at("key-field").value) at("trouble").textContent = error.message
  at("key-field").focus()
}

/** Looks again, as long as models are not ready. */
async function watch() {
  let unavailable
  try {
    ({ unavailable } = await (await send("/readyz")).json())
  } catch (error) {
    at("trouble").textContent = error.message
    return
  }
  const news = Object.entries(unavailable).map(([name, why]) => `${name} (${why.toLowerCase()})`)
  at("news").textContent = news.length ? `Not ready: ${news.join(", ")}` : models.length ? "" : "No model is loaded."
  if (news.length) waiting = setTimeout(load, AGAIN)
}

const viewName = ({ id, version }) => `${id} ${version}`

function show() {
  const asked = location.hash.slice(1)
  const model = models.find(({ id }) => id === asked) ?? models[0]
  at("models").replaceChildren(...models.map(({ id, name }) => {
    const link = element("a", { href: `#${id}` }, name)
    if (id === model.id) link.setAttribute("aria-current", "page")
    return link
  }))
  document.title = model ? `${model.name} – Models` : "Models"
  if (!model) return at("main").replaceChildren()
  if (!views.has(viewName(model))) views.set(viewName(model), view(model))
  const node = views.get(viewName(model))
  if (at("main").firstChild !== node) at("main").replaceChildren(node)
}

function view(model) {
  const panels = PANELS.map(panel => panel(model)).filter(panel => panel)
  const signatures = model.signatures.map(signature => {
    const head = element("summary", {}, element("strong", {}, signature.name), " ",
      element("code", {}, `${list(signature.inputs)} → ${list(signature.outputs)}`))
    const node = element("details", { className: "signature" }, head)
    node.ontoggle = () => node.children.length === 1 && node.open && build(node, () => signatureForm(signature))
    return node
  })
  if (!panels.length && signatures.length) signatures[0].open = true
  return element("div", {},
    element("h2", {}, model.name, " ", element("small", {}, `version ${model.version}`)),
    ...panels.map(([title, make]) => {
      const node = element("section", { className: "panel" }, element("h3", {}, title))
      build(node, make)
      return node
    }),
    element("section", { className: "panel" }, element("h3", {}, "Signatures"), ...signatures))
}

const list = tensors => tensors.map(tensor => `${tensor.name}: ${typeOf(tensor)}`).join(", ")

/** Puts into a node what takes a while to make. */
async function build(node, make) {
  const space = element("div", {})
  node.append(space)
  try {
    space.replaceWith(await make())
  } catch (error) {
    space.replaceWith(element("p", { className: "error", role: "alert" }, error.message))
  }
}

at("key").onsubmit = event => {
  event.preventDefault()
  useKey(at("key-field").value)
  load()
}
at("refresh").onclick = load
addEventListener("hashchange", show)
for (const type of ["dragover", "drop"]) { // A file dropped beside a field would take the place of the page.
  addEventListener(type, event => event.target.type !== "file" && event.dataTransfer.types.includes("Files")
    && event.preventDefault())
}
load()
