import { parentPort } from "node:worker_threads";
import { openDigest, type DigestStream } from "../tensor/digest.js";

/** The next part of a task, or its end. */
export interface DigestOrder {
  task: number;
  part?: Uint8Array;
  end?: true;
}

/** The digest of a task that ends, else nothing. */
export type DigestAnswer = string;

const tasks = new Map<number, DigestStream>();

function follow({ task, part, end }: DigestOrder): DigestAnswer {
  const digest = tasks.get(task) ?? openDigest();
  tasks.set(task, digest);
  if (part !== undefined) digest.add(part);
  if (end === undefined) return "";
  tasks.delete(task);
  return digest.finish();
}

parentPort?.on("message", (orders: DigestOrder[]) => parentPort?.postMessage(orders.map(follow)));
