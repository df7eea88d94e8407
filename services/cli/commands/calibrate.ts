import { readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseModelConfig } from "#common/graph/config.js";
import type { DeviceReport, ReportedModel } from "#agent/main.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson } from "../io.js";
import { formatBytes } from "../output/format.js";
import { formatFields, formatTable } from "../output/table.js";
import type { Shell } from "../shell.js";

export interface CalibrateFlags {
  readonly threads?: number;
  readonly model?: readonly string[];
  readonly json?: boolean;
}

/** Tokens of a sequence where only a config is known. */
const SEQ_LEN = 256;
/** Product shapes of a model that are listed. */
const LISTED = 6;

/** A config.json, or the folder it lies in. */
function readModel(path: string): ReportedModel {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
  const file = isFolder ? join(path, "config.json") : path;
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new CliError(`--model ${file} cannot be read: ${(error as Error).message}`, EXIT.invalid);
  }
  const parsed = parseModelConfig(json);
  if (!parsed.ok) {
    const list = parsed.violations.map(({ field, description }) => `${field} ${description}`).join("; ");
    throw new CliError(`--model ${file} is not a model that can be built: ${list}`, EXIT.invalid);
  }
  const { config } = parsed;
  const name = isFolder ? basename(path) : basename(dirname(file));
  return { name, config, batch: 1, seqLen: Math.min(SEQ_LEN, config.contextLength) };
}

function show({ machine, threads, bandwidthBytesPerSecond, products, models, skipped }: DeviceReport): string {
  const fields = formatFields([
    ["machine", `${machine.os} ${machine.arch}, ${machine.cores} cores, ${threads} threads used`],
    ["memory", `${formatBytes(machine.memoryBytes)} usable`],
    ["bandwidth", `${formatBytes(bandwidthBytesPerSecond)}/s`],
  ]);
  const speeds = formatTable(
    [
      { title: "MODEL", cell: ({ model }) => model },
      { title: "MODE", cell: ({ mode }) => mode },
      { title: "BATCH", right: true, cell: ({ batch, seqLen }) => `${batch}x${seqLen}` },
      { title: "STEP MS", right: true, cell: ({ stepMs }) => stepMs.toFixed(1) },
      { title: "TOKENS/S", right: true, cell: ({ tokensPerSecond }) => tokensPerSecond.toFixed(0) },
      { title: "GFLOP/S", right: true, cell: ({ productGflops }) => productGflops.toFixed(1) },
      { title: "IN PRODUCTS", right: true, cell: ({ productShare }) => `${(100 * productShare).toFixed(0)} %` },
    ],
    models,
  );
  const names = [...new Set(products.map(({ model }) => model))];
  const listed = names.flatMap((name) =>
    products.filter(({ model, mode }) => model === name && mode === "full").slice(0, LISTED),
  );
  const layers = formatTable(
    [
      { title: "PRODUCTS OF", cell: ({ model }) => model },
      { title: "OPERANDS", cell: ({ operands }) => operands.map((shape) => shape.join("x")).join(" * ") },
      { title: "COUNT", right: true, cell: ({ count }) => String(count) },
      { title: "GFLOP/S", right: true, cell: ({ gflops }) => gflops.toFixed(1) },
    ],
    listed,
  );
  return [fields, speeds, layers, skipped.map((line) => `left out: ${line}\n`).join("")].filter(Boolean).join("\n");
}

/** Measures this machine and predicts how fast it would train; talks to no control plane. */
export async function calibrate({ io }: Shell, { threads = 1, model = [], json }: CalibrateFlags): Promise<void> {
  const models = model.map(readModel);
  const { measureDevice } = await import("#agent/main.js");
  const report = await measureDevice(threads, models, (name, mode) => io.err(`measuring ${name} (${mode})\n`));
  if (json === true) writeJson(io, report);
  else io.out(show(report));
}
