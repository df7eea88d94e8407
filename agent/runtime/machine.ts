import { arch, availableParallelism, platform, totalmem } from "node:os";

/** What this process may use of its machine. */
export interface Machine {
  readonly os: string;
  readonly arch: string;
  readonly cores: number;
  /** The least of the machine's memory and the limit of the cgroup. */
  readonly memoryBytes: number;
}

export function inspectMachine(): Machine {
  const limit = process.constrainedMemory();
  const total = totalmem();
  return {
    os: platform(),
    arch: arch(),
    cores: availableParallelism(),
    memoryBytes: limit > 0 ? Math.min(limit, total) : total,
  };
}
