// Asks the server; knows its paths and what its replies look like.

let key = ""

export function useKey(value) {
  key = value
}

/** A reply with an error. */
export class Refusal extends Error {
  constructor(status, message) {
    super(`${message} (status ${status})`)
    this.status = status
  }
}

async function reach(action) {
  try {
    return await action()
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Error("The server cannot be reached, or broke the connection")
  }
}

export async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {}
  const method = body === undefined ? "GET" : "POST"
  const response = await reach(() => fetch(path, { method, body, headers, signal }))
  if (response.ok || path === "/readyz") return response
  const text = await reach(() => response.text())
  let message = text
  try {
    message = JSON.parse(text).error ?? text
  } catch {
    // Not all errors are JSON.
  }
  throw new Refusal(response.status, message || response.statusText)
}

export async function json(path) {
  const response = await send(path)
  return reach(() => response.json())
}

/** The loaded models with their signatures, by /openapi.json and the metadata. */
export async function loadModels() {
  const { paths } = await json("/openapi.json")
  const roots = Object.keys(paths).flatMap(path => path.match(/^(\/v1\/models\/.*):predict$/)?.[1] ?? [])
  return (await Promise.all(roots.map(root => loadModel(root, paths)))).filter(model => model)
}

async function loadModel(root, paths) {
  const id = root.slice("/v1/models/".length)
  const { examples } = paths[`${root}:predict`].post.requestBody.content["application/json"]
  const stream = paths[`/stream/${id}`]?.post.requestBody.content["application/json"]
  try {
    const { model_spec, metadata } = await json(`${root}/metadata`)
    const signatures = Object.entries(metadata.signature_def.signature_def)
      .map(([name, { inputs, outputs }]) =>
        ({ name, root, inputs: tensors(inputs), outputs: tensors(outputs), example: examples[name] }))
      .filter(signature => signature.inputs.length)
    return { id, name: decodeURIComponent(id), version: model_spec.version, stream, signatures: distinct(signatures) }
  } catch (error) {
    if (error.status === 404) return null // It was unloaded just now.
    throw error
  }
}

function tensors(infos) {
  return Object.keys(infos).sort().map(name => {
    const { dtype, tensor_shape: { unknown_rank, dim } } = infos[name]
    const shape = unknown_rank ? null : dim.map(({ size }) => Number(size))
    return { name, dtype: dtype.replace("DT_", "").toLowerCase(), shape }
  })
}

/** Without `serving_default` where it is another name of a signature. */
function distinct(signatures) {
  const form = ({ inputs, outputs }) => JSON.stringify([inputs, outputs])
  const alias = (one, other) => other.name !== "serving_default" && form(one) === form(other)
  return signatures
    .filter(one => one.name !== "serving_default" || !signatures.some(other => alias(one, other)))
    .sort((one, other) => one.name.localeCompare(other.name))
}

/** The inputs of the recorded example, by name; null if there is none. */
export async function exampleOf({ example }) {
  if (!example) return null
  return (example.value ?? await json(example.externalValue)).inputs
}

/** The text of a reply; the inputs are given as JSON. */
export async function predictText(signature, inputs, signal) {
  const body = `{"signature_name": ${JSON.stringify(signature.name)}, "inputs": ${inputs}}`
  const response = await send(`${signature.root}:predict`, body, signal)
  return reach(() => response.text())
}

/** The outputs in the text of a reply, by name; a single output stands there without its name. */
export function outputsIn(text, signature) {
  const { outputs } = JSON.parse(text)
  return signature.outputs.length === 1 ? { [signature.outputs[0].name]: outputs } : outputs
}

export async function predict(signature, inputs, signal) {
  const text = await predictText(signature, JSON.stringify(inputs), signal)
  try {
    return outputsIn(text, signature)
  } catch {
    throw new Error("The reply holds numbers that are none, such as NaN")
  }
}

/** The server-sent events of a stream, as objects with `event` and `data`. */
export async function* events(model, body, signal) {
  const response = await send(`/stream/${model.id}`, JSON.stringify(body), signal)
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const { value, done } = await reach(() => reader.read())
    if (done) return
    const parts = (rest + value).split("\n\n")
    rest = parts.pop()
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map(line => line.split(/: (.*)/s)))
      yield { event: fields.event ?? "message", data: JSON.parse(fields.data) }
    }
  }
}
