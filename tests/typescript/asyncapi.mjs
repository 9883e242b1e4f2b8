// Says what AsyncAPI's own parser finds wrong with the documents that it is given; see test_asyncapi.py.

import { readFileSync } from "node:fs";

import { Parser } from "@asyncapi/parser";

const ERROR = 0;

for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
  for (const { severity, path, message } of diagnostics) {
    if (severity === ERROR) console.error(`${file}: ${path.join(".")}: ${message}`);
  }
  if (!document || diagnostics.some(({ severity }) => severity === ERROR)) process.exitCode = 1;
  else console.log(`${file}: AsyncAPI ${document.version()}, ${document.operations().length} operations`);
}
