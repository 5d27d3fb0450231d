// What a signature takes and gives.

export const isFile = ({ name, dtype, shape }) => dtype === "string" && name.endsWith("_bytes") && shape?.length === 1
export const isText = ({ name, dtype, shape }) => dtype === "string" && !name.endsWith("_bytes") && shape?.length === 1
export const isNumber = ({ dtype, shape }) => /^u?int|^float/.test(dtype) && shape?.length === 1

/** The first signature whose inputs all fit, each by a test of its own, with an output of each given name and rank. */
export function find(model, inputs, outputs) {
  return model.signatures.find(signature =>
    signature.inputs.length === Object.keys(inputs).length
    && signature.inputs.every(tensor => (inputs[tensor.name] ?? inputs["*"])?.(tensor))
    && Object.entries(outputs).every(([name, rank]) =>
      signature.outputs.some(tensor => tensor.name === name && tensor.shape?.length === rank)))
}
