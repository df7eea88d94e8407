import { CodedError, messageOf } from "#common/adapters/coded-error.js";
import type { Backend } from "./backend.js";
import { describeAbsence, PROVIDERS, type Provider } from "./providers.js";

export interface BackendOptions {
  /** Threads inside one operator, a whole number from 1. */
  readonly threads: number;
  /** "cpu" if absent. */
  readonly provider?: Provider | undefined;
}

/** Where the process runs, as Node names it: "linux", "x64". */
export interface Host {
  readonly platform: string;
  readonly arch: string;
}

/** Opens a provider's backend and multiplies two small matrices: whether a driver is there shows only then. */
async function openWorking(provider: Provider, threads: number): Promise<Backend> {
  // Loaded when asked for: a platform may lack the one runtime, and the other takes memory.
  const backend =
    provider === "wasm"
      ? await (await import("./web.js")).openWebBackend({ threads })
      : await (await import("./onnx.js")).openOnnxBackend({ threads, provider });
  await backend.matmulGflops(2, 0);
  return backend;
}

async function workingProviders(except: Provider): Promise<Provider[]> {
  const working: Provider[] = [];
  for (const provider of PROVIDERS.filter((other) => other !== except)) {
    const works = await openWorking(provider, 1).then(
      () => true,
      () => false,
    );
    if (works) working.push(provider);
  }
  return working;
}

/**
 * Opens the backend that computes with a provider.
 * @throws CodedError PROVIDER_ABSENT if this machine lacks it; the message names what it has, and the remedy
 */
export async function openBackend({ threads, provider = "cpu" }: BackendOptions, host: Host): Promise<Backend> {
  try {
    return await openWorking(provider, threads);
  } catch (error) {
    const available = await workingProviders(provider);
    const absence = { provider, ...host, available, reason: messageOf(error) };
    throw new CodedError("PROVIDER_ABSENT", describeAbsence(absence), { cause: error });
  }
}
