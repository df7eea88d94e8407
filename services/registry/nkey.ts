const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const ENCODED_LENGTH = 56;
/** First byte of a public user key: 20 << 3, which base32 shows as "U". */
const USER_PREFIX = 20 << 3;

function decodeBase32(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(Math.floor((text.length * 5) / 8));
  let bits = 0;
  let value = 0;
  let at = 0;
  for (const letter of text) {
    const digit = ALPHABET.indexOf(letter);
    if (digit < 0) return undefined;
    value = ((value << 5) | digit) & 0xffff;
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = (value >> bits) & 0xff;
    }
  }
  return bytes;
}

/** CRC-16/XMODEM, as nkeys use it. */
function crc16(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x8000) === 0 ? crc << 1 : (crc << 1) ^ 0x1021;
    crc &= 0xffff;
  }
  return crc;
}

/** Whether a text is a public nkey of a NATS user: base32 of prefix, 32 bytes of Ed25519 key and a little-endian CRC-16. */
export function isPublicUserKey(text: string): boolean {
  if (text.length !== ENCODED_LENGTH) return false;
  const bytes = decodeBase32(text);
  if (bytes?.[0] !== USER_PREFIX) return false;
  const body = bytes.subarray(0, -2);
  const [low = 0, high = 0] = bytes.subarray(-2);
  return crc16(body) === (low | (high << 8));
}
