import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { call, type Clients } from "./calls.js";
import { exportModel } from "./folders.js";
import type { Source } from "./generation.js";
import { withClients, type RemoteOptions, type Shell } from "./shell.js";

/** Loaded only when a model is used: the tensor runtime behind it is heavy. */
const generation = () => import("./generation.js");

async function remoteSource(clients: Clients, name: string, directory: string): Promise<Source> {
  const { model } = await call(clients.models.getModel.bind(clients.models), { name });
  const { tokenizerOf } = await generation();
  await exportModel(clients, name, directory);
  return { directory, tokenizer: tokenizerOf(model?.tokenizer ?? TokenizerSpec.fromPartial({}), directory) };
}

/** Uses a Hugging Face folder, or a model of the control plane by way of a folder that is removed afterwards. */
export async function withSource<T>(
  shell: Shell,
  model: string,
  options: RemoteOptions,
  use: (source: Source) => Promise<T>,
): Promise<T> {
  if (statSync(model, { throwIfNoEntry: false })?.isDirectory() === true) {
    return use((await generation()).folderSource(model));
  }
  const directory = mkdtempSync(join(tmpdir(), "shoal-model-"));
  try {
    return await use(await withClients(shell, options, (clients) => remoteSource(clients, model, directory)));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
