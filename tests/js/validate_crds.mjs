// Reads a JSON list of custom resources on standard input, and writes a JSON list of what is wrong with each, null for
// nothing. The schemas find wrong types and missing fields; a cluster drops fields that it does not know without a word,
// so the packages' own types find those. An object without a schema is wrong.
import { fileURLToPath } from "node:url";
import ts from "typescript";

const PACKAGES = {
  "external-secrets.io": "@kubernetes-models/external-secrets",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "postgresql.cnpg.io": "@kubernetes-models/cloudnative-pg",
};

function findModule(object) {
  const group = object.apiVersion.split("/")[0];
  return group in PACKAGES ? `${PACKAGES[group]}/${object.apiVersion}/${object.kind}` : null;
}

async function validate(object) {
  const name = findModule(object);
  if (name === null) return `no schema for ${object.apiVersion} ${object.kind}`;
  try {
    const model = (await import(name))[object.kind];
    new model(object).validate();
    return null;
  } catch (error) {
    return String(error.message);
  }
}

// One virtual file beside this one, with each object as a literal: a literal may have no property that its type lacks.
function findUnknownFields(objects) {
  const file = fileURLToPath(new URL("virtual.ts", import.meta.url));
  const lines = objects.map((one) => {
    const name = findModule(one);
    const { apiVersion, kind, ...rest } = one; // the model's own
    return name === null ? "" : `new (await import("${name}")).${kind}(${JSON.stringify(rest)});`;
  });
  const options = {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    noEmit: true,
    skipLibCheck: true,
    strict: true,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists, readFile } = host;
  const text = `${lines.join("\n")}\nexport {};\n`;
  host.fileExists = (path) => path === file || fileExists.call(host, path);
  host.readFile = (path) => (path === file ? text : readFile.call(host, path));
  host.getSourceFile = (path, version, ...rest) =>
    path === file ? ts.createSourceFile(path, text, version) : getSourceFile.call(host, path, version, ...rest);
  const program = ts.createProgram([file], options, host);
  const found = objects.map(() => null);
  for (const one of ts.getPreEmitDiagnostics(program, program.getSourceFile(file))) {
    const line = ts.getLineAndCharacterOfPosition(one.file, one.start).line;
    found[line] ??= ts.flattenDiagnosticMessageText(one.messageText, " ");
  }
  return found;
}

let input = "";
for await (const chunk of process.stdin) input += chunk;
const objects = JSON.parse(input);
const unknown = findUnknownFields(objects);
const invalid = await Promise.all(objects.map(validate));
process.stdout.write(JSON.stringify(objects.map((_, index) => invalid[index] ?? unknown[index])));
