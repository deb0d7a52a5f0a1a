// Requests to the server. Every failure becomes an Error with `what` and `action`.

export class Failure extends Error {
  constructor(what, action = "", status = 0) {
    super(what);
    Object.assign(this, { what, action, status });
  }
}

async function failure(answer) {
  try {
    const { error } = await answer.json();
    return new Failure(error.what, error.do, answer.status);
  } catch {
    return new Failure(`the server answered with ${answer.status}`, "look at its terminal", answer.status);
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("the server does not answer", "is it still running in its terminal?");
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

export const get = async (path, options) => (await ask(path, options)).json();
export const send = async (method, path, body) =>
  (await ask(path, { method, headers: body ? { "content-type": "application/json" } : {}, body: body && JSON.stringify(body) })).json();

/** Bytes and, for overlays, the shape of their grid. */
export async function bytes(path, options) {
  const answer = await ask(path, options);
  const shape = answer.headers.get("x-shape");
  return { data: await answer.arrayBuffer(), shape: shape ? shape.split(",").map(Number) : null };
}

/** The events of a job until it is over; `each(event)` is called for each. Returns the last one. */
export function listen(job, each) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`/api/jobs/${job}/events`);
    let lost = 0;
    source.onmessage = (message) => {
      lost = 0;
      const event = JSON.parse(message.data);
      if (["done", "cancelled", "error"].includes(event.type)) {
        source.close();
        if (event.type === "error") reject(new Failure(event.what, event.do));
        else resolve(event);
      } else each(event);
    };
    source.onerror = () => {
      lost += 1;
      if (source.readyState === EventSource.CLOSED || lost > 3) {
        source.close();
        reject(new Failure("the connection to the server was lost", "is it still running in its terminal?"));
      }
    };
  });
}

/** Send a file: the new scan, or `{choose}` where it holds several. `progress(share)` is told how much has gone. XMLHttpRequest, because fetch does not tell. */
export function upload(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/uploads");
    request.setRequestHeader("content-type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => progress(event.lengthComputable ? event.loaded / event.total : 0);
    request.onload = () => {
      const error = request.response?.error;
      if (request.status === 200 || request.status === 202) resolve(request.response);
      else reject(new Failure(error?.what ?? `the server answered with ${request.status}`, error?.do, request.status));
    };
    request.onerror = () => reject(new Failure("the server broke off the transfer", "the file may be larger than it takes"));
    request.send(file);
  });
}
