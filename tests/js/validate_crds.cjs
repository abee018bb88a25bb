// Reads a JSON list of custom resources on standard input, and writes a JSON list of one error, or null, for each.
// An object that no schema is known for is an error of its own.
"use strict";

const PACKAGES = {
  "external-secrets.io": "@kubernetes-models/external-secrets",
  "keda.sh": "@kubernetes-models/keda",
  "postgresql.cnpg.io": "@kubernetes-models/cloudnative-pg",
};

function validate(object) {
  const [group, version] = object.apiVersion.split("/");
  if (!(group in PACKAGES)) return `no schema for ${object.apiVersion} ${object.kind}`;
  try {
    const model = require(`${PACKAGES[group]}/${group}/${version}/${object.kind}`)[object.kind];
    new model(object).validate();
    return null;
  } catch (error) {
    return String(error.message);
  }
}

let text = "";
process.stdin.on("data", (chunk) => (text += chunk));
process.stdin.on("end", () => process.stdout.write(JSON.stringify(JSON.parse(text).map(validate))));
