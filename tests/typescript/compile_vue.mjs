// Makes two files of a single-file component: Chat.vue.ts, as a bundler does, which runs and is not checked, since its
// template has lost its types; and Chat.script.ts, its script alone, which is checked.

import { readFileSync, writeFileSync } from "node:fs";

import { compileScript, parse } from "vue/compiler-sfc";

const file = process.argv[2];
const { descriptor, errors } = parse(readFileSync(file, "utf8"), { filename: file });
if (errors.length) throw errors[0];
const { content } = compileScript(descriptor, { id: "chat", inlineTemplate: true });
writeFileSync(`${file}.ts`, `// @ts-nocheck\n${content}`);
writeFileSync(file.replace(".vue", ".script.ts"), descriptor.scriptSetup.content);
