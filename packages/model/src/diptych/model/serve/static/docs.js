// The API's page: what /openapi.json says, readable. Nothing is loaded from elsewhere.
"use strict";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The schema that a reference names. */
function resolve(schema, all) {
  return schema && schema.$ref ? all[schema.$ref.split("/").pop()] : schema;
}

/** `integer, 1 to 8`, `array of Painting`, `string or null`. */
function kindOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return [...new Set(schema.anyOf.map(kindOf))].join(" or ");
  if (schema.type === "array") return `array of ${kindOf(schema.items)}`;
  let text = schema.type || "any";
  const least = schema.minimum ?? (schema.exclusiveMinimum !== undefined ? `above ${schema.exclusiveMinimum}` : null);
  const most = schema.maximum ?? (schema.exclusiveMaximum !== undefined ? `below ${schema.exclusiveMaximum}` : null);
  if (least !== null && most !== null) text += `, ${least} to ${most}`;
  else if (least !== null) text += `, from ${least}`;
  if (schema.maxLength) text += `, up to ${schema.maxLength} letters`;
  return text;
}

function fieldTable(rows) {
  const lines = rows.map(([name, schema, required]) => {
    const fallback = schema.default === undefined || schema.default === null ? "" : `, ${JSON.stringify(schema.default)} if left out`;
    const need = required ? ", required" : "";
    return element(
      "tr",
      {},
      element("td", {}, element("code", { textContent: name })),
      element("td", { textContent: kindOf(schema) + fallback + need }),
      element("td", { textContent: schema.description || "" }),
    );
  });
  return element("div", { className: "scroll" }, element("table", {}, ...lines));
}

/** The fields of an object, and those of the objects in it. */
function describe(schema, all, seen = new Set()) {
  const object = resolve(schema, all);
  if (!object || !object.properties) return [];
  const required = new Set(object.required || []);
  const rows = Object.entries(object.properties).map(([name, one]) => [name, one, seen.input && required.has(name)]);
  const parts = [fieldTable(rows)];
  for (const one of Object.values(object.properties)) {
    for (const inner of [one, one.items || {}, ...(one.anyOf || []), ...(one.anyOf || []).map((kind) => kind.items || {})]) {
      if (!inner.$ref || seen.has(inner.$ref)) continue;
      seen.add(inner.$ref);
      parts.push(element("h3", { textContent: inner.$ref.split("/").pop() }), ...describe(inner, all, seen));
    }
  }
  return parts;
}

function command(method, path, call) {
  const address = new URL("." + path, location.href).href.replace("%7Bcode%7D", "{code}");
  if (method === "get") return `curl ${address.replace("{code}", "0")}`;
  if (path.endsWith("caption")) {
    return `curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg "${address}?attention=true"`;
  }
  if (path.endsWith("answer")) {
    return `curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg "${address}?question=what+is+there?"`;
  }
  return `curl --json '{"caption": "two red kites above the sea.", "seed": 1}' ${address}`;
}

function callPart(method, path, call, all) {
  const parts = [
    element("h2", {}, element("span", { className: "method", textContent: method.toUpperCase() }), path),
    element("p", { textContent: call.summary }),
    element("pre", { textContent: command(method, path, call) }),
  ];
  if (call.parameters) {
    const rows = call.parameters.map((one) => [one.name, { description: one.description, ...one.schema }, one.required]);
    parts.push(element("h3", { textContent: path.includes("{") ? "In the address" : "Query" }), fieldTable(rows));
  }
  for (const [kind, body] of Object.entries(call.requestBody ? call.requestBody.content : {})) {
    const seen = Object.assign(new Set(), { input: true });
    parts.push(element("h3", { textContent: `Body: ${kind}` }), ...describe(body.schema, all, seen));
  }
  for (const [status, reply] of Object.entries(call.responses)) {
    const schema = reply.content && reply.content["application/json"] && reply.content["application/json"].schema;
    if (status === "200") parts.push(element("h3", { textContent: "Reply" }), ...describe(schema, all));
  }
  const refusals = Object.entries(call.responses).filter(([status]) => status !== "200");
  if (refusals.length) {
    const text = refusals.map(([status, reply]) => `${status}: ${reply.description}`).join(" ");
    parts.push(element("h3", { textContent: "Refusals" }), element("p", { textContent: text }));
  }
  return element("section", {}, ...parts);
}

async function load() {
  const document_ = await (await fetch("openapi.json")).json();
  document.getElementById("about").textContent = document_.info.description;
  for (const [path, calls] of Object.entries(document_.paths)) {
    for (const [method, call] of Object.entries(calls)) {
      document.getElementById("calls").append(callPart(method, path, call, document_.components.schemas));
    }
  }
}

load().catch(() => {
  const notice = document.getElementById("docs-notice");
  notice.textContent = "The server cannot be reached. Is it running?";
  notice.hidden = false;
});
