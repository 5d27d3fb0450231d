// Sliders for the numbers of a latent, and the picture that follows them.

import { exampleOf, predict } from "./api.js"
import { button, element, fileField, picture } from "./dom.js"
import { askingForm } from "./form.js"
import { find, isFile } from "./signatures.js"

const FIRST = 10 // sliders that are open at once
const MOST = 512
const PAUSE = 60 // milliseconds without a movement

const isLatent = ({ dtype, shape }) => dtype === "float" && shape?.length === 2 && shape[1] > 0 && shape[1] <= MOST

export function latentPanel(model) {
  const decode = model.signatures.find(({ inputs, outputs }) =>
    inputs.length === 1 && isLatent(inputs[0]) && outputs.some(isFile))
  return decode && ["Latent to picture", async () => {
    const [{ name, shape: [, size] }] = decode.inputs
    const encode = find(model, { "*": isFile }, { mean: 2 })
    const fits = encode?.outputs.some(tensor => tensor.name === "mean" && tensor.shape[1] === size)
    const example = fits ? (await exampleOf(encode))?.[encode.inputs[0].name][0].b64 : null
    const sliders = Array.from({ length: size }, (_, index) => slider(index, moved))
    const first = element("div", { className: "sliders" })
    const rest = element("div", { className: "sliders" })
    const file = fits && fileField("Picture to begin with", begin, example)
    const image = element("div", { className: "decoded", "aria-live": "off" })
    let again = false
    let pause = 0

    const form = askingForm({
      quiet: true,
      verb: "Decode",
      async run(signal) {
        const outputs = await predict(decode, { [name]: [sliders.map(({ value }) => value())] }, signal)
        image.replaceChildren(picture(outputs[decode.outputs.find(isFile).name][0].b64, "The decoded picture"))
      },
    })

    /** One request is under way at most; what moved meanwhile is asked for after it. */
    async function follow() {
      if (form.busy()) {
        again = true
        return
      }
      do {
        again = false
        await form.submit()
      } while (again)
    }

    function moved() {
      clearTimeout(pause)
      pause = setTimeout(follow, PAUSE)
    }

    function set(values, order = sliders.keys()) {
      sliders.forEach((one, index) => one.set(values[index]))
      const nodes = [...order].map(index => sliders[index].node)
      first.replaceChildren(...nodes.slice(0, FIRST))
      rest.replaceChildren(...nodes.slice(FIRST))
      moved()
    }

    /** The latent of a picture; those numbers come first of which the model is most sure. */
    const encoding = fits && askingForm({
      fields: [file.node],
      quiet: true,
      async run(signal) {
        const b64 = await file.read()
        const outputs = await predict(encode, { [encode.inputs[0].name]: [{ b64 }] }, signal)
        const [doubt] = outputs.log_var ?? [Array(size).fill(0)]
        set(outputs.mean[0], [...doubt.keys()].sort((one, other) => doubt[one] - doubt[other]))
      },
    })
    function begin() {
      encoding.submit()
    }

    set(Array(size).fill(0))
    if (example) file.useExample()
    form.actions.append(
      button("Random", () => set(sliders.map(gaussian), order())), button("Zero", () => set(Array(size).fill(0), order())))
    function order() {
      const shown = [...first.children, ...rest.children]
      return shown.map(node => sliders.findIndex(one => one.node === node))
    }
    form.node.prepend(
      element("div", { className: "latent" }, image,
        element("div", {}, first, size > FIRST
          ? element("details", {}, element("summary", {}, `${size - FIRST} more`), rest) : null)))
    return element("div", {}, ...(encoding ? [encoding.node] : []), form.node)
  }]
}

function slider(index, moved) {
  const input = element("input", { type: "range", min: -4, max: 4, step: 0.05, id: `latent-${index}-${slider.count++}` })
  const number = element("output", { htmlFor: input.id })
  const show = () => number.textContent = Number(input.value).toFixed(2)
  input.oninput = () => {
    show()
    moved()
  }
  return {
    node: element("div", { className: "slider" },
      element("label", { htmlFor: input.id }, `latent ${index}`), input, number),
    value: () => Number(input.value),
    set(value) {
      input.value = value
      show()
    },
  }
}
slider.count = 0

/** A number drawn from the standard normal distribution. */
export function gaussian() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())
}
