// What both pages use. Paths are relative to the page, so that it works under any path in front of the server.
const BASE = location.pathname.replace(/\/docs\/?$/, "").replace(/\/?$/, "/");
const $ = (id) => document.getElementById(id);

class KeyError extends Error {}

// The decoded reply of a route; `body` is sent as JSON. Throws a KeyError on 401, else an Error with the server's text.
async function call(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("bei-key");
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const init = { method: body === undefined ? "GET" : "POST", headers, body: JSON.stringify(body) };
  const reply = await fetch(BASE + path, init).catch(() => { throw new Error("the server does not answer"); });
  const text = await reply.text();
  if (reply.status === 401) throw new KeyError("the API key is missing or wrong");
  const value = (reply.headers.get("content-type") || "").includes("json") && text ? JSON.parse(text) : text;
  if (!reply.ok) throw new Error(value.error?.message ?? value.error ?? value.message ?? `HTTP ${reply.status}`);
  return value;
}

const SVG = new DOMParser().parseFromString("<svg/>", "text/html").querySelector("svg").namespaceURI;

// An element with attributes and children; strings become text, never markup.
function element(name, attributes = {}, ...children) {
  const ofPlot = ["svg", "circle", "text", "title"].includes(name);
  const made = ofPlot ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

// Asks for the key, then goes on with `then`; shows any other error in #failure.
async function guarded(then) {
  $("failure").textContent = "";
  try {
    await then();
    $("login").hidden = true;
  } catch (error) {
    if (error instanceof KeyError) {
      $("login").hidden = false;
      $("key").focus();
      if (!sessionStorage.getItem("bei-key")) return;
    }
    $("failure").textContent = error.message;
  }
}

function askForKey(then) {
  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("bei-key", $("key").value);
    guarded(then);
  });
}
