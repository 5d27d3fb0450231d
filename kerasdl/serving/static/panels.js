// Panels for what signatures take and give; each is chosen by names and types, never by the name of the model.

import { events, exampleOf, predict } from "./api.js"
import { bars, button, download, element, field, fileField, figure, numberField, percent, picture } from "./dom.js"
import { askingForm } from "./form.js"
import { attention } from "./attention.js"
import { gaussian, latentPanel } from "./latent.js"
import { find, isFile, isNumber, isText } from "./signatures.js"

const TOP = 10 // classes, words

/** The names of so many classes; numbers where the model does not tell them. */
async function classNames(model, number) {
  const signature = find(model, { index: isNumber }, { label: 1 })
  const indices = [...Array(number).keys()]
  if (!signature) return indices.map(index => `class ${index}`)
  model.classNames ??= predict(signature, { index: indices }).then(({ label }) => label)
  return model.classNames.catch(error => {
    delete model.classNames
    throw error
  })
}

async function ranked(model, probabilities) {
  const names = await classNames(model, probabilities.length)
  const rows = probabilities.map((share, index) => [names[index], share]).sort((one, other) => other[1] - one[1])
  return [
    element("p", { className: "answer" }, `${rows[0][0]}, ${percent(rows[0][1])}`),
    bars(rows.slice(0, TOP)),
    rows.length > TOP ? element("small", {}, `The first ${TOP} of ${rows.length} classes`) : null,
  ].filter(part => part)
}

/** A field for a picture that asks at once; its example comes from the signature. */
async function pictureForm(signature, verb, run, extra = []) {
  const [{ name }] = signature.inputs.filter(isFile)
  const example = await exampleOf(signature)
  const file = fileField("Picture", () => form.submit(), example?.[name][0].b64)
  const form = askingForm({ fields: [file.node, ...extra], verb, run: async signal => run(await file.read(), signal) })
  return form.node
}

// --- Pictures ---

function pictureClasses(model) {
  const signature = find(model, { "*": isFile }, { probabilities: 2 })
  return signature && ["Classes of a picture", () => pictureForm(signature, "Classify", async (b64, signal) => {
    const { probabilities } = await predict(signature, { [signature.inputs[0].name]: [{ b64 }] }, signal)
    return ranked(model, probabilities[0])
  })]
}

function captions(model) {
  const one = find(model, { "*": isFile }, { caption: 1, log_probability: 1 })
  if (!one) return null
  const { name } = one.inputs[0]
  const many = find(model, { [name]: isFile, beam_width: isNumber, length_penalty: isNumber },
    { captions: 2, log_probabilities: 2 })
  const looks = find(model, { [name]: isFile, caption: isText }, { weights: 4, words: 2 })
  return ["Caption of a picture", async () => {
    const width = numberField("captions", 1, { min: 1, max: 20, hint: "more than 1: all of a beam search of that width" })
    return pictureForm(one, "Caption", async (b64, signal) => {
      const files = { [name]: [{ b64 }] }
      const number = many ? width.input.valueAsNumber : 1
      let found
      if (number > 1) {
        const { length_penalty } = await exampleOf(many) ?? { length_penalty: [1] }
        const outputs = await predict(many, { ...files, beam_width: [number], length_penalty }, signal)
        found = outputs.captions[0].map((text, index) => [text, outputs.log_probabilities[0][index]])
      } else {
        const outputs = await predict(one, files, signal)
        found = [[outputs.caption[0], outputs.log_probability[0]]]
      }
      const view = element("div", {})
      const choose = async (text, shownBy) => {
        shownBy?.parentNode.querySelectorAll("button").forEach(other =>
          other.setAttribute("aria-pressed", other === shownBy))
        const outputs = looks && await predict(looks, { ...files, caption: [text] }, signal)
        view.replaceChildren(looks ? attention(b64, outputs, text) : figure(picture(b64, text), text))
      }
      const choices = found.length > 1 && found.map(([text, log]) => button(text, event =>
        choose(text, event.currentTarget).catch(error => view.replaceChildren(error.message)),
        { title: `log probability ${log.toFixed(2)}` }))
      await choose(found[0][0])
      choices && choices[0].setAttribute("aria-pressed", true)
      return [
        ...(choices ? [element("div", { className: "choices" }, ...choices)] : []),
        element("small", {}, `Log probability ${found[0][1].toFixed(2)}${choices ? " of the first" : ""}`),
        view,
      ]
    }, many ? [width.node] : [])
  }]
}

/** The picture with Gaussian noise, in base64; the standard deviation is of 255. */
async function noisy(b64, deviation) {
  const source = new Image()
  source.src = `data:image/png;base64,${b64}`
  await source.decode().catch(() => {
    throw new Error("This browser cannot open the picture to add noise; expected one without added noise")
  })
  const canvas = element("canvas", { width: source.naturalWidth, height: source.naturalHeight })
  const context = canvas.getContext("2d")
  context.drawImage(source, 0, 0)
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height)
  for (let index = 0; index < pixels.data.length; index++) {
    if (index % 4 !== 3) pixels.data[index] += deviation * gaussian()
  }
  context.putImageData(pixels, 0, 0)
  return canvas.toDataURL("image/png").split(",")[1]
}

function pictureToPicture(model) {
  const signature = model.signatures.find(({ inputs, outputs }) =>
    inputs.length === 1 && isFile(inputs[0]) && outputs.some(isFile))
  return signature && ["Picture to picture", () => {
    const noise = numberField("noise to add", 0, { min: 0, max: 100, hint: "standard deviation, of 255" })
    return pictureForm(signature, "Send", async (given, signal) => {
      const deviation = noise.input.valueAsNumber
      const b64 = deviation ? await noisy(given, deviation) : given
      const outputs = await predict(signature, { [signature.inputs[0].name]: [{ b64 }] }, signal)
      const made = outputs[signature.outputs.find(isFile).name][0].b64
      return [
        element("div", { className: "pictures pair" },
          figure(picture(b64, "Input"), "Input"), figure(picture(made, "Output"), "Output")),
        download("Download the picture", `data:image/png;base64,${made}`, "picture.png"),
      ]
    }, [noise.node])
  }]
}

// --- Texts ---

function textClasses(model) {
  const signature = find(model, { "*": isText }, { probabilities: 2 })
  if (!signature) return null
  const { name } = signature.inputs[0]
  const explains = find(model, { [name]: isText }, { words: 2, weight: 2 })
  return ["Class of a text", async () => {
    const example = await exampleOf(signature)
    const input = element("textarea", { rows: 4, required: true, value: example?.[name][0] ?? "" })
    return askingForm({
      fields: [field("Text", input)],
      verb: "Classify",
      async run(signal) {
        const given = { [name]: [input.value] }
        const [{ probabilities }, words] = await Promise.all(
          [predict(signature, given, signal), explains && predict(explains, given, signal)])
        return [...await ranked(model, probabilities[0]), ...(words ? wordWeights(words.words[0], words.weight[0]) : [])]
      },
    }).node
  }]
}

/** The words of a text, those that speak for its class and against it in colour; and the heaviest as a list. */
function wordWeights(words, weights) {
  const most = Math.max(...weights.map(Math.abs), 1e-9)
  const signed = weight => `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)}`
  const marks = words.flatMap((word, index) => {
    const mark = element("span", { className: weights[index] < 0 ? "against" : "for", title: signed(weights[index]) }, word)
    mark.style.setProperty("--share", `${Math.round(100 * Math.abs(weights[index]) / most)}%`)
    return [mark, " "]
  })
  const heaviest = words.map((word, index) => [word, weights[index]])
    .sort((one, other) => Math.abs(other[1]) - Math.abs(one[1])).slice(0, TOP)
  return [
    element("h4", {}, "The words that count"),
    element("p", { className: "words" }, ...marks),
    element("p", {}, element("span", { className: "for key" }, "for the class"), " ",
      element("span", { className: "against key" }, "against it")),
    element("ol", { className: "heaviest" }, ...heaviest.map(([word, weight]) =>
      element("li", {}, element("span", {}, word), " ", element("span", { className: "number" }, signed(weight))))),
  ]
}

function textStream(model) {
  const { prompt, ...settings } = model.stream?.schema.properties ?? {}
  return prompt && ["Text generation", () => {
    const text = element("textarea", { rows: 10, required: true, value: model.stream.examples.stream.value.prompt, spellcheck: false })
    const numbers = Object.entries(settings).map(([name, { type, default: value, minimum, maximum, description }]) =>
      [name, numberField(name, value,
        { whole: type === "integer", min: minimum, max: maximum, hint: description })])
    let before = ""
    let writing = 0
    const form = askingForm({
      fields: [field("Text", text, "The model goes on from this text. Edit it and go on again."),
        element("div", { className: "numbers" }, ...numbers.map(([, { node }]) => node))],
      verb: "Write on",
      async run(signal) {
        before = text.value
        const given = Object.fromEntries(numbers.map(([name, { input }]) => [name, input.valueAsNumber]))
        text.readOnly = ++writing > 0
        try {
          for await (const { event, data } of events(model, { prompt: before, ...given }, signal)) {
            if (event === "error") throw new Error(data.error)
            if (event === "message") text.value += data.text
            text.scrollTop = text.scrollHeight
          }
        } finally {
          text.readOnly = --writing > 0 // A newer one may write already.
          undo.hidden = text.value === before
        }
      },
    })
    const undo = button("Undo", () => {
      text.value = before
      undo.hidden = true
      text.focus()
    }, { hidden: true })
    form.actions.append(undo)
    return form.node
  }]
}

// --- Generators ---

const HINTS = { seed: "same seed, same pictures", truncation: "0: none" }

function grid(model) {
  const signature = model.signatures.find(({ inputs, outputs }) => inputs.every(isNumber)
    && ["count", "seed"].every(name => inputs.some(tensor => tensor.name === name)) && outputs.some(isFile))
  return signature && ["Generated pictures", async () => {
    const example = await exampleOf(signature) ?? {}
    const names = await classesToDraw(model)
    const fields = signature.inputs.map(({ name, dtype }) => {
      if (name === "class_index" && names) {
        const options = [["any", -1], ...names.map((label, index) => [label, index])]
        const input = element("select", {}, ...options.map(([label, value]) => element("option", { value }, label)))
        return [name, () => Number(input.value), field("Class", input)]
      }
      const value = name === "count" ? 16 : example[name]?.[0] ?? 0
      const { input, node } = numberField(name, value,
        { whole: dtype.includes("int"), min: name === "count" ? 1 : "", hint: HINTS[name] })
      return [name, () => input.valueAsNumber, node]
    })
    return askingForm({
      fields: [element("div", { className: "numbers" }, ...fields.map(([, , node]) => node))],
      verb: "Generate",
      async run(signal) {
        const given = Object.fromEntries(fields.map(([name, read]) => [name, [read()]]))
        const outputs = await predict(signature, given, signal)
        return drawn(outputs[signature.outputs.find(isFile).name], names && outputs.class_index?.map(index => names[index]))
      },
    }).node
  }]
}

/** The classes of a generator that says how many there are; else null. */
async function classesToDraw(model) {
  const signature = find(model, { index: isNumber }, { label: 1, num_classes: 1 })
  if (!signature) return null
  const { num_classes } = await predict(signature, { index: [0] })
  return classNames(model, num_classes[0])
}

function drawn(files, names) {
  const pictures = files.map(({ b64 }, index) => {
    const name = names?.[index] ?? `picture ${index + 1}`
    const shown = picture(b64, name)
    const link = download("", shown.src, `${name}.png`)
    link.replaceChildren(shown)
    return names ? figure(link, name) : link
  })
  const all = button("Download all in one picture", async () => {
    const sources = pictures.map(node => node.querySelector("img"))
    const columns = Math.ceil(Math.sqrt(sources.length))
    const { naturalWidth: width, naturalHeight: height } = sources[0]
    const canvas = element("canvas", { width: columns * width, height: Math.ceil(sources.length / columns) * height })
    sources.forEach((source, index) => canvas.getContext("2d")
      .drawImage(source, index % columns * width, Math.floor(index / columns) * height))
    download("", canvas.toDataURL("image/png"), "pictures.png").click()
  })
  return [element("div", { className: "pictures grid" }, ...pictures), all]
}

/** Gives for a model its title and what builds the panel, or nothing. */
export const PANELS = [pictureClasses, captions, pictureToPicture, textClasses, textStream, latentPanel, grid]
