import { readFile } from "node:fs/promises";
import { issueBootstrapUser, issueDeviceUser, revokeUsers, type TrustRoot } from "#common/adapters/nats/credentials.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CredentialIssuer } from "./credentials.js";

export interface TrustPorts {
  readonly root: TrustRoot;
  readonly keysDir: string;
  readonly natsUrls: readonly string[];
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** Issues with the account's seed; revokes through a connection of the system user, opened when first needed. */
export class NatsCredentials implements CredentialIssuer {
  private system: Promise<NatsLink> | undefined;

  constructor(private readonly ports: TrustPorts) {}

  issueDevice(device: string, publicKey: string, expiresAtMs: number): Promise<string> {
    return issueDeviceUser({ deviceAccountSeed: this.ports.root.deviceAccountSeed, device, publicKey, expiresAtMs });
  }

  issueBootstrap(tokenId: string, expiresAtMs: number): Promise<{ jwt: string; seed: string }> {
    return issueBootstrapUser({ deviceAccountSeed: this.ports.root.deviceAccountSeed, tokenId, expiresAtMs });
  }

  async revoke(publicKey: string): Promise<void> {
    const { nc } = await this.connect();
    await revokeUsers(nc, this.ports.root, [publicKey], this.ports.clock.nowMs());
  }

  /** Closes what `revoke` opened. */
  async close(): Promise<void> {
    await (await this.system?.catch(() => undefined))?.close();
  }

  private connect(): Promise<NatsLink> {
    const opening = this.system ?? this.open();
    this.system = opening;
    opening.catch(() => {
      this.system = undefined;
    });
    return opening;
  }

  private async open(): Promise<NatsLink> {
    const { keysDir, natsUrls, clock, log, signal } = this.ports;
    const creds = await readFile(credsPaths(keysDir).system, "utf8");
    return NatsLink.connect({ servers: [...natsUrls], creds, name: "registry (revocations)", clock, log, signal });
  }
}
