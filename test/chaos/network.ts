import { execFileSync } from "node:child_process";

/** Where system programs lie that are not on everybody's PATH. */
const ENV = { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` };

function run(command: string, ...args: string[]): void {
  execFileSync(command, args, { env: ENV, stdio: ["ignore", "ignore", "pipe"] });
}

function quietly(command: string, ...args: string[]): void {
  try {
    run(command, ...args);
  } catch {
    // What is gone already need not be removed.
  }
}

/** What a device's link suffers. */
export type Impairment = "link-down" | "silence" | "loss" | "slow";

/** Drops this share of what comes in and of what goes out; 100 cuts without a sign. */
function dropRules(percent: number): string {
  const rule = percent >= 100 ? "drop" : `numgen random mod 100 < ${percent} drop`;
  const chain = (hook: string): string =>
    `chain ${hook} { type filter hook ${hook} priority 0; oifname lo accept; ${rule}; };`;
  return `table inet chaos { ${chain("output")} ${chain("input").replace("oifname", "iifname")} }`;
}

/**
 * A network of its own: every device in a namespace, all on one bridge with an address of the host, at which NATS
 * listens. Nothing of the host's other networks is touched: addresses are of 198.18.0.0/15, which is set aside for tests.
 */
export class Network {
  readonly host: string;
  readonly #bridge: string;
  readonly #tag: string;
  readonly #subnet: string;
  readonly #devices: string[] = [];

  private constructor(tag: number) {
    this.#tag = `shc${tag}`;
    this.#bridge = `${this.#tag}b`;
    this.#subnet = `198.${18 + ((tag >> 8) & 1)}.${tag & 255}`;
    this.host = `${this.#subnet}.1`;
  }

  /** Makes the bridge; throws with the reason if this machine does not let us. */
  static open(): Network {
    const network = new Network(process.pid % 100_000);
    try {
      for (const program of ["nft", "tc"]) run(program, program === "nft" ? "--version" : "-Version");
      run("ip", "link", "add", network.#bridge, "type", "bridge");
      run("ip", "address", "add", `${network.host}/24`, "dev", network.#bridge);
      run("ip", "link", "set", network.#bridge, "up");
      return network;
    } catch (error) {
      network.close();
      throw error;
    }
  }

  /** Makes a device's namespace; what to put in front of a command to run it there. */
  add(device: string): string[] {
    const index = this.#devices.push(device);
    const [space, outer] = [this.#space(device), this.#outer(device)];
    run("ip", "netns", "add", space);
    run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space);
    run("ip", "link", "set", outer, "master", this.#bridge, "up");
    this.#inside(device, "ip", "address", "add", `${this.#subnet}.${10 + index}/24`, "dev", "eth0");
    this.#inside(device, "ip", "link", "set", "eth0", "up");
    this.#inside(device, "ip", "link", "set", "lo", "up");
    return ["ip", "netns", "exec", space];
  }

  impair(device: string, how: Impairment): void {
    if (how === "link-down") run("ip", "link", "set", this.#outer(device), "down");
    else if (how === "slow") {
      const rate = ["root", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "400ms"];
      this.#inside(device, "tc", "qdisc", "replace", "dev", "eth0", ...rate);
      run("tc", "qdisc", "replace", "dev", this.#outer(device), ...rate);
    } else this.#inside(device, "nft", dropRules(how === "silence" ? 100 : 20));
  }

  repair(device: string, how: Impairment): void {
    if (how === "link-down") run("ip", "link", "set", this.#outer(device), "up");
    else if (how === "slow") {
      this.#inside(device, "tc", "qdisc", "delete", "dev", "eth0", "root");
      run("tc", "qdisc", "delete", "dev", this.#outer(device), "root");
    } else this.#inside(device, "nft", "delete", "table", "inet", "chaos");
  }

  /** Removes all it made. */
  close(): void {
    for (const device of this.#devices) quietly("ip", "netns", "delete", this.#space(device));
    quietly("ip", "link", "delete", this.#bridge);
  }

  #space(device: string): string {
    return `${this.#tag}-${device}`;
  }

  /** The host's end of a device's link; names of interfaces are short. */
  #outer(device: string): string {
    return `${this.#tag}v${this.#devices.indexOf(device)}`;
  }

  #inside(device: string, command: string, ...args: string[]): void {
    run("ip", "netns", "exec", this.#space(device), command, ...args);
  }
}
