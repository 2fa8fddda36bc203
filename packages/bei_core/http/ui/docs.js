let spec = {};

const resolve = (schema) => (schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema);

// A schema in words: "string", "list of number or string", or the names of enum values.
function words(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.anyOf) return schema.anyOf.map(words).join(" or ");
  if (schema.type === "array") return `list of ${schema.items && Object.keys(schema.items).length ? words(schema.items) : "anything"}`;
  return [schema.type ?? "anything"].flat().join(" or ");
}

function fields(schema) {
  const { properties = {}, required = [] } = resolve(schema);
  const rows = Object.entries(properties).map(([name, each]) => element("tr", {},
    element("td", {}, element("code", {}, name), required.includes(name) ? " (required)" : ""),
    element("td", {}, words(each)),
    element("td", {}, "default" in each ? JSON.stringify(each.default) : "")));
  const head = element("tr", {}, ...["Field", "Type", "Default"].map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

const curl = (method, path, example) =>
  `curl ${location.origin}${BASE.slice(0, -1)}${path}` +
  (method === "POST" ? ` \\\n  -H 'content-type: application/json' \\\n  -d '${JSON.stringify(example).replaceAll("'", "'\\''")}'` : "");

function operation(path, method, { summary, description, requestBody, responses }) {
  const parts = [];
  const body = requestBody?.content["application/json"];
  if (description) parts.push(element("p", {}, description));
  if (body?.schema.$ref) parts.push(element("h3", {}, "Body"), fields(body.schema));
  if (body?.schema.anyOf) parts.push(element("p", {}, `The body of any of ${words(body.schema)}; its fields decide.`));
  parts.push(element("h3", {}, "Example"), element("pre", { tabindex: 0 }, curl(method, path, body?.example)));
  const reply = responses[200]?.content?.["application/json"];
  if (reply) parts.push(element("h3", {}, "Reply"), element("pre", { tabindex: 0 }, JSON.stringify(reply.example, null, 1)));
  const errors = Object.entries(responses).filter(([status]) => status !== "200").map(([status, each]) => `${status}: ${each.description}`);
  parts.push(element("p", { class: "muted" }, `Errors: ${errors.join("; ")}.`));
  return element("details", {}, element("summary", {}, element("code", {}, `${method} ${path}`), ` ${summary}`), ...parts);
}

async function start() {
  spec = await call("openapi.json");
  const found = Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, each]) => operation(path, method.toUpperCase(), each)));
  $("main").replaceChildren(...found);
}

$("home").href = BASE;
$("document").href = `${BASE}openapi.json`;
askForKey(start);
guarded(start);
