/** What the registry needs of the keys that NATS trusts. Times are Unix milliseconds. */
export interface CredentialIssuer {
  /** A user JWT bound to a public key that lets a device publish and read its own subjects only. */
  issueDevice(device: string, publicKey: string, expiresAtMs: number): Promise<string>;
  /** A user that can only ask to join with this token; `expiresAtMs` 0 means never. */
  issueBootstrap(tokenId: string, expiresAtMs: number): Promise<{ jwt: string; seed: string }>;
  /** Makes every JWT issued so far for the key worthless, and closes its connections. Idempotent. */
  revoke(publicKey: string): Promise<void>;
}

/** How long a device's credential is good; the agent asks for the next one with a heartbeat well before its end. */
export const CREDENTIAL_MS = 7 * 24 * 60 * 60 * 1000;
