/** What can compute: the native runtime on a processor or through a driver, or WebAssembly, which is slow and everywhere. */
export const PROVIDERS = ["cpu", "cuda", "coreml", "dml", "webgpu", "wasm"] as const;
export type Provider = (typeof PROVIDERS)[number];

export const isProvider = (name: string): name is Provider => PROVIDERS.some((provider) => provider === name);

const REMEDIES: Readonly<Record<Provider, string>> = {
  cpu: "Reinstall onnxruntime-node on this machine, or use wasm",
  cuda:
    "It needs Linux on x64 with an NVIDIA driver, CUDA 12, cuDNN 9, and the runtime's CUDA libraries: " +
    "npm rebuild onnxruntime-node --ignore-scripts=false --onnxruntime-node-install=cuda12",
  coreml: "It needs macOS on Apple silicon",
  dml: "It needs Windows with a DirectX 12 GPU",
  webgpu: "It needs macOS, Windows, or Linux on x64, with a GPU driver (on Linux Vulkan: libvulkan1 and the GPU's own)",
  wasm: "Install onnxruntime-web (npm ci)",
};

export interface Absence {
  readonly provider: Provider;
  /** As Node names them: "linux", "x64". */
  readonly platform: string;
  readonly arch: string;
  /** What works here. */
  readonly available: readonly Provider[];
  /** What the runtime said. */
  readonly reason: string;
}

/** One line: what is absent and where, why, what could be used, and what would make it present. */
export function describeAbsence({ provider, platform, arch, available, reason }: Absence): string {
  // A failed assertion of the runtime begins with its place and condition.
  const why = reason
    .replace(/\s+/g, " ")
    .replace(/^\S*onnxruntime_src\S* .* was false\. /, "")
    .replace(/[\s.]+$/, "");
  return (
    `provider ${provider} cannot be used on ${platform}-${arch}: ${why}. ` +
    `Available here: ${available.join(", ")}. ${REMEDIES[provider]}.`
  );
}
