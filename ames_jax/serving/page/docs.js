"use strict";

/** An element with properties and children; text is always set as text. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A schema in a line, names followed one level deep. */
function shape(schema, schemas, depth = 0) {
  if (!schema) return "";
  const name = schema.$ref?.split("/").pop();
  const full = name ? schemas[name] ?? {} : schema;
  if (full.anyOf) return full.anyOf.map((one) => shape(one, schemas, depth)).join(" or ");
  if (full.type === "array") return `[${shape(full.items, schemas, depth)}, …]`;
  if (full.properties && depth < 3) {
    const fields = Object.entries(full.properties).map(([key, value]) => `"${key}": ${shape(value, schemas, depth + 1)}`);
    return `{${fields.join(", ")}}`;
  }
  if (full.type === "object" && full.additionalProperties) return `{"…": ${shape(full.additionalProperties, schemas, depth + 1)}}`;
  return full.format === "binary" ? "file" : full.type ?? name ?? "any";
}

function operation(method, path, facts, schemas) {
  const made = element("section", { className: "operation" },
    element("h2", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` })),
    element("p", { textContent: (facts.description ?? facts.summary ?? "").replaceAll("`", "") }));
  const list = element("dl");
  const add = (name, text) => list.append(element("dt", { textContent: name }), element("dd", { textContent: text }));
  for (const parameter of facts.parameters ?? []) {
    const { name, required, schema, description } = parameter;
    const standard = schema.default !== undefined && schema.default !== null && schema.default !== "" ? `, default ${schema.default}` : "";
    add(name, `${parameter.in}, ${shape(schema, schemas)}${required ? "" : ", optional"}${standard}. ${description ?? schema.description ?? ""}`);
  }
  for (const [kind, body] of Object.entries(facts.requestBody?.content ?? {})) add(`body, ${kind}`, shape(body.schema, schemas));
  for (const [status, answer] of Object.entries(facts.responses).filter(([status]) => status < "3")) {
    const json = answer.content?.["application/json"];
    add(status, json ? shape(json.schema, schemas) : answer.description);
  }
  made.append(list);
  return made;
}

fetch("openapi.json").then(async (response) => {
  const api = await response.json();
  if (!response.ok) throw new Error(`${api.error} (the page of the search asks for it)`);
  document.getElementById("facts").textContent = `version ${api.info.version}`;
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, facts]) => operation(method, path, facts, api.components.schemas)));
  const refusals = 'A request that is refused gets a status of 4xx, or 503 while the server is busy (Retry-After says for how many ' +
    'seconds), and {"error": "…"}.';
  document.getElementById("operations").append(element("p", { textContent: refusals }), ...operations);
}).catch((error) => { document.getElementById("operations").textContent = error.message; });
