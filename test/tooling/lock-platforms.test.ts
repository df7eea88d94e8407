import { readFileSync } from "node:fs";
import test from "ava";
import { completeLock, missingPlatformEntries, type Lock } from "./lock-platforms.js";

test("package-lock.json names the builds of every platform, so that npm 11 accepts it everywhere", (t) => {
  const lock = JSON.parse(readFileSync("package-lock.json", "utf8")) as Lock;
  t.deepEqual(missingPlatformEntries(lock), {});
});

test("completes a lock with the platforms of the names, and only those", (t) => {
  const lock: Lock = {
    packages: {
      "node_modules/tool": {
        dev: true,
        optionalDependencies: { "tool-win32-x64": "1.2.3", "tool-linux-aarch64": "1.2.3" },
      },
      "node_modules/tool-linux-aarch64": { version: "1.2.3" },
    },
  };
  t.deepEqual(completeLock(lock).packages["node_modules/tool-win32-x64"], {
    version: "1.2.3",
    cpu: ["x64"],
    optional: true,
    os: ["win32"],
    dev: true,
  });
  t.is(Object.keys(completeLock(lock).packages).length, 3);
});

test("refuses to guess a platform", (t) => {
  const lock: Lock = { packages: { "node_modules/tool": { optionalDependencies: { "tool-amiga": "1.0.0" } } } };
  t.throws(() => missingPlatformEntries(lock), { message: /tool-amiga/ });
});
