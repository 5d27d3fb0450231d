// Forms that ask the server, and the form that every signature has.

import { exampleOf, outputsIn, predictText } from "./api.js"
import { button, download, element, field, fileField, figure, indented, picture } from "./dom.js"

const SHOWN = 20_000 // characters of a reply
const WIDE = 10_000 // characters of an example that is sent, but not shown

/** One request at a time, which can be stopped; a newer one ends it. `run` gets a signal, and returns what to show. */
export function askingForm({ fields = [], verb, run, quiet = false }) {
  const go = element("button", { className: "primary", hidden: !verb }, verb)
  const stop = button("Stop", () => {
    current?.abort()
    go.focus()
  }, { hidden: true })
  const status = element("p", { className: "status", role: "status" })
  const error = element("p", { className: "error", role: "alert" })
  const result = element("div", { className: "result", "aria-live": quiet ? "off" : "polite" })
  const actions = element("div", { className: "actions" }, go, stop)
  const node = element("form", {}, ...fields, actions, status, error, result)
  let current = null

  async function submit() {
    current?.abort()
    const own = current = new AbortController()
    const began = performance.now()
    error.textContent = ""
    stop.hidden = quiet
    const later = setTimeout(() => own === current && (status.textContent = "Working …"), 300)
    let end = ""
    try {
      const shown = await run(own.signal)
      if (own.signal.aborted) throw own.signal.reason
      if (shown) result.replaceChildren(...[shown].flat())
      if (!quiet) end = `Answered in ${((performance.now() - began) / 1000).toFixed(2)} s`
    } catch (problem) {
      if (problem.name === "AbortError") end = "Stopped"
      else if (own === current) {
        error.textContent = problem.message
        result.replaceChildren() // It would look like the answer.
      }
    } finally {
      clearTimeout(later)
    }
    if (own !== current) return
    current = null
    stop.hidden = true
    status.textContent = end
  }

  node.onsubmit = event => {
    event.preventDefault()
    submit()
  }
  return { node, submit, result, actions, busy: () => current !== null }
}

export function typeOf({ dtype, shape }) {
  return shape === null ? `${dtype}, any shape` : `${dtype}[${shape.map(size => size < 0 ? "?" : size).join(", ")}]`
}

/** The form of a signature: a field for each input. */
export async function signatureForm(signature) {
  const example = await exampleOf(signature)
  const inputs = signature.inputs.map(tensor => inputField(tensor, example?.[tensor.name]))
  const form = askingForm({
    fields: inputs.map(({ node }) => node),
    verb: "Send",
    async run(signal) {
      const values = await Promise.all(inputs.map(({ json }) => json()))
      const members = signature.inputs.map(({ name }, index) => `${JSON.stringify(name)}: ${values[index]}`)
      return reply(await predictText(signature, `{${members.join(", ")}}`, signal), signature)
    },
  })
  return form.node
}

/** A field of an input; `json` gives its value. */
function inputField(tensor, example) {
  const { name, dtype, shape } = tensor
  const label = `${name}: ${typeOf(tensor)}`
  const wrap = text => shape.length ? `[${text}]` : text
  const single = dtype === "string" && shape && shape.length <= 1
  const first = shape?.length ? example?.[0] : example
  if (single && name.endsWith("_bytes")) {
    const file = fileField(label, null, first?.b64)
    return { node: file.node, json: async () => wrap(JSON.stringify({ b64: await file.read() })) }
  }
  if (single && typeof (first ?? "") === "string") {
    const input = element("textarea", { rows: 3, value: first ?? "" })
    return { node: field(label, input), json: () => wrap(JSON.stringify(input.value)) }
  }
  const recorded = example === undefined ? "" : JSON.stringify(example)
  const long = recorded.length > WIDE
  const flat = shape && shape.length <= 1
  const input = element(flat ? "input" : "textarea", { value: long ? "" : recorded, spellcheck: false })
  const hint = long ? "JSON; while this is empty, the recorded example is sent" : "JSON"
  return {
    node: field(label, input, hint),
    json() {
      const text = input.value.trim() || (long ? recorded : "")
      try {
        JSON.parse(text)
      } catch {
        throw new Error(`${name} is no JSON; expected ${dtype === "string" ? "texts" : "numbers"} such as ${
          indented(recorded).slice(0, 40) || (flat ? "[1]" : "[[1, 2]]")}`)
      }
      return flat && shape.length && !text.startsWith("[") ? `[${text}]` : text
    },
  }
}

/** A reply: its files as pictures, and its JSON. */
function reply(text, signature) {
  const pictures = []
  try {
    const outputs = outputsIn(text, signature)
    for (const [name, value] of Object.entries(outputs)) {
      if (!name.endsWith("_bytes")) continue
      for (const { b64 } of [value].flat(Infinity)) {
        const shown = figure(picture(b64, name), name)
        shown.firstChild.onerror = () => shown.remove() // It is no picture.
        pictures.push(shown)
      }
    }
  } catch {
    // Without NaN and the like it would be JSON: the text is shown all the same.
  }
  const short = text.replace(/("b64": ?")([^"]{40})[^"]+/g, "$1$2…")
  const shown = short.length > SHOWN ? `${short.slice(0, SHOWN)} …` : indented(short)
  return [
    ...(pictures.length ? [element("div", { className: "pictures" }, ...pictures)] : []),
    element("pre", { tabIndex: 0 }, shown),
    download("Download the reply", URL.createObjectURL(new Blob([text], { type: "application/json" })), "reply.json"),
  ]
}
