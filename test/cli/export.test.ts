import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import test, { type ExecutionContext } from "ava";
import type { Clients } from "#services/cli/calls.js";
import { CliError, EXIT } from "#services/cli/exit.js";
import { exportModel } from "#services/cli/folders.js";

/** A model service that only exports: these pieces, then an error if there is one. */
function exporting(pieces: readonly [string, number, Buffer][], failure?: Error): Pick<Clients, "models"> {
  const answers = function* (): Generator {
    for (const [fileName, fileSizeBytes, data] of pieces) yield { piece: { fileName, fileSizeBytes, data } };
    if (failure !== undefined) throw failure;
  };
  const call = () => Object.assign(Readable.from(answers()), { cancel: () => undefined });
  return { models: { export: call } } as unknown as Pick<Clients, "models">;
}

function place(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), "shoal-export-"));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const HALVES: [string, number, Buffer][] = [
  ["config.json", 2, Buffer.from("{}")],
  ["model.safetensors", 6, Buffer.from("abc")],
  ["model.safetensors", 6, Buffer.from("def")],
];

test("files get their names when they are complete", async (t) => {
  const directory = join(place(t), "new", "folder");
  t.deepEqual(await exportModel(exporting(HALVES), "some", directory), ["config.json", "model.safetensors"]);
  t.deepEqual(readdirSync(directory).sort(), ["config.json", "model.safetensors"]);
  t.is(readFileSync(join(directory, "model.safetensors"), "utf8"), "abcdef");
});

test("a file that cannot be opened or named is told by its path, and nothing of it stays", async (t) => {
  for (const taken of ["model.safetensors.part", "model.safetensors"]) {
    const directory = place(t);
    mkdirSync(join(directory, taken));
    writeFileSync(join(directory, taken, "x"), "x");
    const error = await t.throwsAsync(exportModel(exporting(HALVES), "some", directory), { instanceOf: CliError });
    t.true(error.message.startsWith(`${join(directory, "model.safetensors")} cannot be written: `), error.message);
    t.regex(error.message, /choose another folder$/);
    t.deepEqual(readdirSync(directory).sort(), ["config.json", taken]);
  }
});

test("a folder that cannot be made is told by its path", async (t) => {
  const path = join(place(t), "file");
  writeFileSync(path, "");
  const error = await t.throwsAsync(exportModel(exporting(HALVES), "some", path), { instanceOf: CliError });
  t.true(error.message.startsWith(`${path} cannot be written: `), error.message);
});

const full = existsSync("/dev/full") ? test : test.skip;
full("a full disk ends the export with an error that callers can catch", async (t) => {
  const directory = place(t);
  symlinkSync("/dev/full", join(directory, "model.safetensors.part"));
  const error = await t.throwsAsync(exportModel(exporting(HALVES), "some", directory), { instanceOf: CliError });
  t.regex(error.message, /model\.safetensors cannot be written: ENOSPC/);
  t.deepEqual(readdirSync(directory), ["config.json"]);
});

test("of an export that breaks off no part of a file stays", async (t) => {
  const directory = place(t);
  await t.throwsAsync(exportModel(exporting(HALVES.slice(0, 2), new Error("gone")), "some", directory), {
    message: "gone",
  });
  t.deepEqual(readdirSync(directory), ["config.json"]);
  const short = await t.throwsAsync(exportModel(exporting(HALVES.slice(0, 2)), "some", directory), {
    instanceOf: CliError,
    message: "model.safetensors ended after 3 of 6 bytes: export it again",
  });
  t.is(short.exitCode, EXIT.temporary);
  t.deepEqual(readdirSync(directory), ["config.json"]);
});
