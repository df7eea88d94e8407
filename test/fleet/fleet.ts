import { spawn, type ChildProcess } from "node:child_process";
import { createWriteStream, mkdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type CallOptions,
  type Client,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import { FleetServiceClient } from "#proto/shoal/v1/fleet_service.js";
import { JobServiceClient } from "#proto/shoal/v1/job_service.js";
import { ModelServiceClient } from "#proto/shoal/v1/model_service.js";
import { TelemetryServiceClient } from "#proto/shoal/v1/telemetry_service.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { type Context, parseContext } from "#services/cli/context.js";

export const CLI = resolve("dist/services/cli/main.js");

type UnaryMethod<Req, Res> = (
  request: Req,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Res) => void,
) => ClientUnaryCall;

/** One unary call with a deadline. */
export function unary<Req, Res>(
  client: Client,
  method: UnaryMethod<Req, Res>,
  request: Req,
  timeoutMs = 10_000,
): Promise<Res> {
  return new Promise((done, fail) => {
    method.call(client, request, new Metadata(), { deadline: Date.now() + timeoutMs }, (error, response) =>
      error ? fail(error) : done(response),
    );
  });
}

export interface DeviceSetup {
  name: string;
  dataset: string;
  dataDir: string;
  threads?: number;
  throttle?: number;
  policyFile?: string;
  /** Address of the gateway of its site. */
  via?: string;
  /** In front of `node`, e.g. ["ip", "netns", "exec", "x"]. */
  launcher?: readonly string[];
}

export interface GatewaySetup {
  name: string;
  /** HOST:PORT for its site's devices. */
  listen: string;
  /** Address of the control plane. */
  via: string;
}

export interface FleetOptions {
  /** Directory of the control plane and of the devices' states. */
  dir: string;
  replicas?: number;
  /** Address at which NATS listens, and how many servers there are. */
  natsHost?: string;
  natsNodes?: number;
  env?: Record<string, string>;
  /** How long `shoal up` may take to be ready. */
  readyMs?: number;
}

function waitForExit(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((done) => child.once("exit", () => done()));
}

/** A whole Shoal of real processes: `shoal up` and any number of `shoal agent`. Ends only what it started. */
export class Fleet {
  readonly devices = new Map<string, { setup: DeviceSetup; process: ChildProcess; token: string }>();
  readonly #gateways = new Map<string, ChildProcess>();
  #up: ChildProcess | undefined;
  #stopping = false;

  private constructor(readonly options: FleetOptions) {}

  /** Starts `shoal up` and waits until every service answers. */
  static async start(options: FleetOptions): Promise<Fleet> {
    mkdirSync(options.dir, { recursive: true });
    const fleet = new Fleet(options);
    try {
      await fleet.up();
      return fleet;
    } catch (error) {
      // What was started must not outlive the failure.
      await fleet.stop();
      throw error;
    }
  }

  #spawn(name: string, args: readonly string[], launcher: readonly string[] = []): ChildProcess {
    const [command = process.execPath, ...rest] = [...launcher, process.execPath, CLI, ...args];
    const child = spawn(command, rest, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...this.options.env },
    });
    const log = createWriteStream(join(this.options.dir, `${name}.out`), { flags: "a" });
    child.stdout.pipe(log);
    child.stderr.pipe(log, { end: false });
    return child;
  }

  /** (Re)starts `shoal up` on the same directory. */
  async up(timeoutMs = this.options.readyMs ?? 60_000): Promise<void> {
    const { dir, replicas = 1, natsHost = "127.0.0.1", natsNodes = 1 } = this.options;
    const nats = ["--nats-host", natsHost, "--nats-nodes", String(natsNodes)];
    this.#up = this.#spawn("up", ["up", "--dir", dir, "--replicas", String(replicas), ...nats]);
    const until = Date.now() + timeoutMs;
    for (;;) {
      if (this.#up.exitCode !== null) {
        throw new Error(
          `shoal up ended with ${this.#up.exitCode}: ${readFileSync(join(this.options.dir, "up.out"), "utf8").slice(-2000)}`,
        );
      }
      try {
        await this.ready();
        return;
      } catch (error) {
        if (Date.now() > until) throw new Error("shoal up did not become ready", { cause: error });
        await sleep(200);
      }
    }
  }

  /** Throws unless this up's context is written and a job can be listed and a device too. */
  async ready(): Promise<void> {
    if (this.context().pids["up"] !== this.#up?.pid) throw new Error("context is of an earlier run");
    await this.withJobs((jobs) =>
      unary(jobs, jobs.list.bind(jobs), { pageSize: 1, pageToken: "", labelSelector: {} }, 2000),
    );
    await this.withFleet((fleet) =>
      unary(fleet, fleet.listDevices.bind(fleet), { pageSize: 1, pageToken: "", labelSelector: {} }, 2000),
    );
  }

  context(): Context {
    const parsed = parseContext(readFileSync(join(this.options.dir, "context.json"), "utf8"));
    if (!parsed.ok) throw new Error(parsed.problem);
    return parsed.context;
  }

  get upPid(): number {
    return this.#up?.pid ?? 0;
  }

  /** Tries every replica in turn, as a client with a list of addresses does. */
  async #withClient<C extends Client, T>(
    addresses: readonly string[],
    make: (address: string) => C,
    use: (client: C) => Promise<T>,
  ): Promise<T> {
    let last: unknown = new Error("no address");
    for (const address of addresses) {
      const client = make(address);
      try {
        return await use(client);
      } catch (error) {
        last = error;
      } finally {
        client.close();
      }
    }
    throw last;
  }

  withJobs<T>(use: (client: JobServiceClient) => Promise<T>): Promise<T> {
    return this.#withClient(
      this.context().grpc.scheduler,
      (a) => new JobServiceClient(a, credentials.createInsecure()),
      use,
    );
  }

  withFleet<T>(use: (client: FleetServiceClient) => Promise<T>): Promise<T> {
    return this.#withClient(
      this.context().grpc.registry,
      (a) => new FleetServiceClient(a, credentials.createInsecure()),
      use,
    );
  }

  withModels<T>(use: (client: ModelServiceClient) => Promise<T>): Promise<T> {
    return this.#withClient(
      this.context().grpc.registry,
      (a) => new ModelServiceClient(a, credentials.createInsecure()),
      use,
    );
  }

  withTelemetry<T>(use: (client: TelemetryServiceClient) => Promise<T>): Promise<T> {
    return this.#withClient(
      this.context().grpc.telemetry,
      (a) => new TelemetryServiceClient(a, credentials.createInsecure()),
      use,
    );
  }

  /** A token for any number of devices. */
  async token(deviceLabels: Record<string, string> = {}): Promise<string> {
    const issued = await this.withFleet((fleet) =>
      unary(fleet, fleet.issueJoinToken.bind(fleet), { ttlMs: 0, uses: -1, deviceLabels }),
    );
    return issued.token;
  }

  /** Starts a device's agent; again after a kill on the same state. */
  startDevice(setup: DeviceSetup, token: string): ChildProcess {
    const args = ["agent", "--join", token, "--name", setup.name, "--dataset", `${setup.dataset}=${setup.dataDir}`];
    args.push("--state", this.stateOf(setup.name), "--threads", String(setup.threads ?? 1));
    if (setup.throttle !== undefined) args.push("--throttle", String(setup.throttle));
    if (setup.policyFile !== undefined) args.push("--policy", setup.policyFile);
    if (setup.via !== undefined) args.push("--via", setup.via);
    const child = this.#spawn(setup.name, args, setup.launcher);
    this.devices.set(setup.name, { setup, process: child, token });
    return child;
  }

  /** Starts the gateway of a site; again after a kill on the same state. */
  startGateway(setup: GatewaySetup, token: string): ChildProcess {
    const args = ["gateway", "--join", token, "--name", setup.name, "--listen", setup.listen];
    args.push("--state", this.stateOf(setup.name), "--via", setup.via);
    const child = this.#spawn(setup.name, args);
    this.#gateways.set(setup.name, child);
    return child;
  }

  /** The process of a gateway. */
  gateway(name: string): ChildProcess | undefined {
    return this.#gateways.get(name);
  }

  /** State folder of a device or gateway. */
  stateOf(name: string): string {
    return join(this.options.dir, `state-${name}`);
  }

  /** What a process has printed so far. */
  printed(name: string): string {
    return readFileSync(join(this.options.dir, `${name}.out`), "utf8");
  }

  /** Starts a dead device again. */
  restartDevice(name: string): void {
    const device = this.devices.get(name);
    if (device !== undefined && !this.#stopping) this.startDevice(device.setup, device.token);
  }

  async waitForDevices(count: number, timeoutMs = 240_000): Promise<void> {
    const until = Date.now() + timeoutMs;
    for (;;) {
      const listed = await this.withFleet((fleet) =>
        unary(fleet, fleet.listDevices.bind(fleet), { pageSize: 1000, pageToken: "", labelSelector: {} }),
      );
      const alive = listed.devices.filter((d) => d.alive).length;
      if (alive >= count) return;
      if (Date.now() > until)
        throw new Error(`${alive} of ${count} devices are alive after ${timeoutMs} ms\n${this.lastWords()}`);
      await sleep(300);
    }
  }

  /** The end of what each agent printed, for a failure's message. */
  lastWords(): string {
    return [...this.devices.keys()]
      .map((name) => `${name}: ${readFileSync(join(this.options.dir, `${name}.out`), "utf8").slice(-600)}`)
      .join("\n");
  }

  async apply(manifest: string): Promise<TrainingJob> {
    const reply = await this.withJobs((jobs) =>
      unary(jobs, jobs.apply.bind(jobs), { source: { $case: "manifest", value: manifest }, dryRun: false }, 60_000),
    );
    if (reply.job === undefined) throw new Error("apply answered without a job");
    return reply.job;
  }

  async job(name: string): Promise<TrainingJob> {
    const reply = await this.withJobs((jobs) => unary(jobs, jobs.get.bind(jobs), { name }));
    if (reply.job === undefined) throw new Error("get answered without a job");
    return reply.job;
  }

  /** Polls until the job ends; failures of the control plane meanwhile are waited out. */
  async waitForJob(name: string, timeoutMs: number, onChange?: (job: TrainingJob) => void): Promise<TrainingJob> {
    const until = Date.now() + timeoutMs;
    let rounds = -1;
    for (;;) {
      const job = await this.job(name).catch(() => undefined);
      if (job?.status !== undefined && job.status.completedRounds !== rounds) {
        rounds = job.status.completedRounds;
        onChange?.(job);
      }
      if (job?.status !== undefined && ["Completed", "Failed", "Cancelled"].includes(job.status.phase)) return job;
      if (Date.now() > until) throw new Error(`job ${name} did not end in ${timeoutMs} ms; it has ${rounds} rounds`);
      await sleep(500);
    }
  }

  /** Ends everything this fleet started. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const agents = [...[...this.devices.values()].map((d) => d.process), ...this.#gateways.values()];
    for (const agent of agents) agent.kill("SIGTERM");
    await Promise.race([Promise.all(agents.map(waitForExit)), sleep(8000)]);
    for (const agent of agents) if (agent.exitCode === null) agent.kill("SIGKILL");
    if (this.#up !== undefined) {
      this.#up.kill("SIGTERM");
      await Promise.race([waitForExit(this.#up), sleep(20_000)]);
      if (this.#up.exitCode === null) this.#up.kill("SIGKILL");
    }
  }
}
