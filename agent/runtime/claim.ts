import { readFile } from "node:fs/promises";
import { writeAtomically, type Disk } from "../disk.js";

export type Claim = { ok: true; release: () => Promise<void> } | { ok: false; problem: string };

const FILE = "agent.pid";

/** When a process started, in ticks since boot; undefined if there is none, or no /proc to ask. */
export async function startTime(pid: number): Promise<string | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, "utf8");
    // Fields are counted after the command's name, which may hold anything.
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}

/**
 * Claims a state folder for this process: two agents on one outbox would lose updates. The claim of a killed process is
 * void, also when another process has its id now.
 */
export async function claimFolder(disk: Disk, folder: string): Promise<Claim> {
  const text = new TextDecoder().decode(await disk.read(`${folder}/${FILE}`));
  const [pid, started] = text.trim().split(" ");
  if (pid !== undefined && started !== undefined && Number(pid) !== process.pid) {
    if ((await startTime(Number(pid))) === started) {
      return { ok: false, problem: `process ${pid} is an agent on this folder; stop it or name another folder` };
    }
  }
  const own = `${process.pid} ${(await startTime(process.pid)) ?? ""}\n`;
  await writeAtomically(disk, folder, FILE, [new TextEncoder().encode(own)]);
  return { ok: true, release: () => disk.remove(`${folder}/${FILE}`) };
}
