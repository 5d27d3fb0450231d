// Elements of the page. Text of the server only ever becomes text, never HTML.

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value)
    else node[name] = value
  }
  node.append(...children.filter(child => child != null))
  return node
}

export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text)
}

let count = 0

/** An input with its label, and a hint. */
export function field(label, input, hint = "") {
  input.id = `field-${++count}`
  const small = hint && element("small", { id: `${input.id}-hint` }, hint)
  if (hint) input.setAttribute("aria-describedby", small.id)
  return element("div", { className: "field" }, element("label", { htmlFor: input.id }, label), input, small || null)
}

/** A number with its limits; the label is its name in the words of the field. */
export function numberField(name, value, { whole = true, min = "", max = "", hint = "" } = {}) {
  const input = element("input", { type: "number", value, min, max, step: whole ? 1 : "any", required: true })
  const words = name.replace(/^top_/, "top-").replaceAll("_", " ")
  return { input, node: field(words[0].toUpperCase() + words.slice(1), input, hint) }
}

/** A picture in base64; a small one is shown with its pixels. */
export function picture(b64, alt) {
  const node = element("img", { alt })
  node.onload = () => node.classList.toggle("small", node.naturalWidth <= 96)
  node.src = `data:image/png;base64,${b64}` // Browsers look at the bytes, not at the word png.
  return node
}

export function figure(content, caption) {
  return element("figure", {}, content, element("figcaption", {}, caption))
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1))
    reader.onerror = () => reject(new Error(`The file cannot be read: ${reader.error.message}`))
    reader.readAsDataURL(blob)
  })
}

/** A file to drop or to choose, or that of the recorded example (base64). `read` gives it in base64. */
export function fileField(label, changed, example) {
  const input = element("input", { type: "file" })
  const preview = element("span", { className: "preview" })
  const name = element("span", {}, "Drop a file here, or choose one")
  let chosen = null

  async function show(b64, text) {
    chosen = b64
    const shown = picture(await b64, "")
    shown.onerror = () => shown.remove() // It is no picture: the server will say so.
    preview.replaceChildren(shown)
    name.textContent = text
    changed?.()
  }

  input.onchange = () => input.files.length && show(base64(input.files[0]), input.files[0].name)
  const node = field(label, element("div", {}))
  const useExample = () => {
    input.value = ""
    return show(example, "The recorded example")
  }
  const zone = element("div", { className: "zone" }, preview, name, input,
    example ? button("Use the example", useExample) : null)
  input.id = node.firstChild.htmlFor
  node.replaceChild(zone, node.lastChild)
  return {
    node,
    useExample,
    async read() {
      if (chosen === null) throw new Error(`Choose a file first: ${label}`)
      return chosen
    },
  }
}

/** Names with a share of 0 to 1 each. */
export function bars(rows) {
  const items = rows.map(([name, share]) => {
    const fill = element("span", { className: "fill" })
    fill.style.width = `${100 * share}%`
    return element("li", {}, element("span", {}, name), element("span", { className: "bar" }, fill),
      element("span", { className: "number" }, percent(share)))
  })
  return element("ol", { className: "bars" }, ...items)
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`
}

/** A link that stores a file. */
export function download(text, href, name) {
  return element("a", { className: "button", href, download: name }, text)
}

/** JSON with a line for each member and each row; what is written stays as it is, digit for digit. */
export function indented(text) {
  const open = []
  let written = "", last = ""
  const line = () => `\n${"  ".repeat(open.length)}`
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s"[\]{}:,]+/g)) {
    if (token === "}" || token === "]") {
      open.pop()
      if (last === "}" || last === "]" || token === "}") written += line()
    } else if (last === "{" || (last === "[" && (token === "[" || token === "{"))) written += line()
    else if (last === ",") written += open.at(-1) === "{" || token === "[" || token === "{" ? line() : " "
    else if (last === ":") written += " "
    written += token
    if (token === "{" || token === "[") open.push(token)
    last = token
  }
  return written
}
