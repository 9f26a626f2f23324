/** The imserver client for browsers and Node. docs/javascript.md is the guide. */

/** Why one request was refused: the numbers of docs/protocol.md. */
export const ErrorCode: {
  readonly BAD_FRAME: 400;
  readonly UNAUTHORIZED: 401;
  readonly FORBIDDEN: 403;
  readonly NOT_FOUND: 404;
  readonly METHOD_NOT_ALLOWED: 405;
  readonly TIMEOUT: 408;
  readonly CONFLICT: 409;
  readonly LOST: 410;
  readonly TOO_LARGE: 413;
  readonly CODEC_UNAVAILABLE: 415;
  readonly BAD_BODY: 422;
  readonly TOO_MANY_REQUESTS: 429;
  readonly TOO_MANY_SUBSCRIPTIONS: 442;
  readonly INTERNAL: 500;
  readonly OVERLOADED: 503;
  readonly NOT_DURABLE: 507;
};

/** Why a connection was ended. */
export const CloseCode: {
  readonly UNAUTHORIZED: 4001;
  readonly FORBIDDEN: 4003;
  readonly BAD_PROTOCOL: 4004;
  readonly VERSION_UNSUPPORTED: 4005;
  readonly REPLACED: 4009;
  readonly KICKED: 4010;
  readonly FRAME_TOO_LARGE: 4013;
  readonly INTERNAL: 4100;
  readonly HEARTBEAT_LOST: 4108;
  readonly SLOW_CONSUMER: 4109;
  readonly TOKEN_EXPIRED: 4112;
  readonly TOO_MANY_CONNECTIONS: 4129;
  readonly OVERLOADED: 4153;
  readonly HANDSHAKE_TIMEOUT: 4160;
  readonly RESTART: 4201;
  readonly REBALANCE: 4202;
  readonly MOVED: 4301;
};

/** A request was refused, or the connection ended: then `code` is a close code, 0 without one. */
export class ImError extends Error {
  constructor(
    code: number,
    message?: string,
    details?: Partial<Pick<ImError, "retryAfterMs" | "topic" | "id" | "alternatives">>,
  );
  readonly name: "ImError";
  /** Of `ErrorCode`, of `CloseCode`, or 1000 to 3999: the application's own. */
  readonly code: number;
  /** Not before this; 0 without advice. */
  readonly retryAfterMs: number;
  /** What it is about, "" where that is nothing. */
  readonly topic: string;
  /** The publisher's number of the message that was refused, 0 where it was none. */
  readonly id: number;
  /** Where a 43xx code sends the client: "host:port". */
  readonly alternatives: readonly string[];
}

/** How bodies are written: what `@msgpack/msgpack` exports is one. */
export interface Codec {
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

export type CodecName = "bytes" | "json" | "msgpack" | "protobuf";

export interface ClientOptions {
  /** In place of a token, with --dev servers. */
  user?: string;
  /** The text, or a function that is asked for one before every connection. */
  token?: string | (() => string | Promise<string>);
  /** One session for each user and device: a tab needs a device of its own. Default "default". */
  device?: string;
  /** Of the software, for the server's logs. */
  name?: string;
  /** For bodies that are not bytes. Default "json"; "msgpack" needs the option `msgpack`. */
  codec?: "json" | "msgpack";
  /** Reads and writes MessagePack bodies: `import * as msgpack from "@msgpack/msgpack"`. */
  msgpack?: Codec;
  /** How many messages a subscription without acknowledgements holds. Default 1024. */
  queueMessages?: number;
  /** One attempt, and the whole of `connect`. Default 10,000. */
  connectTimeoutMs?: number;
  /** For publish, subscribe and close. Default 10,000. */
  waitTimeoutMs?: number;
  /** The class, where there is none: Node before 22 has `ws`. */
  WebSocket?: unknown;
}

/** What the server said when it welcomed us; docs/protocol.md, WELCOME. */
export interface Welcome {
  readonly user: string;
  readonly session: string;
  readonly node: string;
  /** Ms since the Unix epoch, by the server's clock. */
  readonly time: number;
  readonly heartbeat: {
    readonly interval_ms: number;
    readonly timeout_ms: number;
    readonly max_missed: number;
  };
  readonly limits: { readonly max_frame: number; readonly window: number; readonly subscriptions: number };
  readonly reconnect: { readonly base_ms: number; readonly factor: number; readonly max_ms: number };
}

/** The message with this `id` is on the server's disk, as number `seq` of its topic. */
export interface Receipt {
  readonly id: number;
  readonly seq: number;
  /** Ms since the Unix epoch. */
  readonly time: number;
}

export interface PublishOptions {
  /** "" or a word that subscribers may pick by. */
  tag?: string;
  /** Deliver it to this connection too, where that is subscribed. Default true. */
  echo?: boolean;
  /** Of bytes: what they hold. Of a value: how it is written. */
  codec?: CodecName;
}

export interface DurablePublishOptions extends PublishOptions {
  durable: true;
  /** Give up without a receipt after so long: 408, nobody knows whether it is kept. */
  retryMs?: number;
}

export interface SubscribeOptions {
  /** Which messages: "*", or "a||b". */
  tags?: string;
  /** With acknowledgements, from where this user and device left off. */
  durable?: boolean;
  /** Everything behind this seq, then live. */
  after?: number;
  /** The `epoch` that `after` was read under. */
  epoch?: string;
}

/** One message, as it was delivered. */
export interface Message<Body = any> {
  readonly topic: string;
  /** Its place in the topic; 0 where the topic keeps nothing. */
  readonly seq: number;
  /** Ms since the Unix epoch, by the server's clock. */
  readonly time: number;
  readonly sender: string;
  readonly tag: string;
  /** The sender's number for it; text beyond 2^53. */
  readonly id: number | string;
  /** Decoded; the bytes where there is no codec for them, or they are not what it says. */
  readonly body: Body;
  readonly bytes: Uint8Array;
  readonly codec: CodecName;
  readonly durable: boolean;
  /** Delivered before and not acknowledged. */
  readonly redelivered: boolean;
  /** 0, and counted up when it is delivered again. */
  readonly attempt: number;
  /** Those of the frame, without the codec. */
  readonly flags: number;
}

/** The messages of one topic, in order: `for await (const message of subscription)`. Ends after
 * `close()`; throws when the server ended it, or told the client to stop. Leaving a loop early
 * does not unsubscribe. */
export interface Subscription<Body = any> extends AsyncIterable<Message<Body>> {
  readonly topic: string;
  /** Whether messages are to be acknowledged. */
  readonly durable: boolean;
  /** It continues behind this seq: the last that was acknowledged, or with `after` handed out. */
  readonly cursor: number;
  /** The last seq of the topic that is known. */
  readonly head: number;
  /** The oldest seq that is kept, by the latest SUBSCRIBED. */
  readonly first: number;
  /** The numbering that seqs belong to: to be kept with them. */
  readonly epoch: string;
  /** Messages that were gone by retention, or dropped because they were not read, in sum. */
  readonly missed: number;
  /** How many messages wait to be read. */
  readonly size: number;
  next(): Promise<IteratorResult<Message<Body>, undefined>>;
  /** Done with everything up to this message or seq; of one that was set aside by `nack`, and is
   * older, only with itself. Leaves by itself, and is said again after a lost connection. */
  ack(message: Message | number): void;
  /** This one failed here: deliver it again later. The others go on. */
  nack(message: Message | number): void;
  /** Unsubscribe. What waits to be read is gone. */
  close(): Promise<void>;
}

export type State = "connecting" | "open" | "closed";

export interface ClientEvents {
  /** `reason`: why the connection ended, null where that is not known yet; `delayMs`: until the
   * next attempt, null where none is waited for. */
  state: { readonly state: State; readonly reason: ImError | null; readonly delayMs: number | null };
  /** A refused publish that was not durable (`id` and `topic` say which), and 410: messages of
   * `topic` are gone, or it is numbered anew. */
  error: ImError;
  /** Each time a subscription begins or is renewed, asked for or not. */
  subscribed: { readonly topic: string; readonly subscription: Subscription };
  /** It has ended; `error` where the server said why. */
  unsubscribed: { readonly topic: string; readonly error: ImError | null };
  /** On topics that no subscription reads: broadcasts. */
  message: Message;
}

export interface ClientEvent<Name extends keyof ClientEvents> extends Event {
  readonly type: Name;
  readonly detail: ClientEvents[Name];
}

/** A user's connection to a server, kept alive. */
export class Client extends EventTarget {
  constructor(url: string | URL, options?: ClientOptions);
  /** Connect. Tries for `connectTimeoutMs`, then rejects with why it failed. */
  start(): Promise<this>;
  /** Send what was published and acknowledged, then disconnect. */
  close(): Promise<void>;
  /** Who we are: the sender of everything that is published here. */
  readonly user: string;
  readonly session: string;
  readonly welcome: Welcome | null;
  readonly state: State;
  /** Resolves with the receipt, when the server has the message on its disk. */
  publish(topic: string, body: unknown, options: DurablePublishOptions): Promise<Receipt>;
  /** Resolves when the socket has it. A refusal comes as an "error" event. */
  publish(topic: string, body: unknown, options?: PublishOptions & { durable?: false }): Promise<null>;
  publish(
    topic: string,
    body: unknown,
    options?: PublishOptions & { durable?: boolean; retryMs?: number },
  ): Promise<Receipt | null>;
  subscribe<Body = any>(topic: string, options?: SubscribeOptions): Promise<Subscription<Body>>;
  /** Ask the server: history, members, presence, read, unread, and what the application has. */
  call<Result = any>(method: string, params?: unknown, options?: { timeoutMs?: number }): Promise<Result>;
  /** The subscriptions that the server makes by itself: inbox, conversations, groups. */
  joined(): AsyncIterableIterator<Subscription>;
  addEventListener<Name extends keyof ClientEvents>(
    type: Name,
    listener: ((event: ClientEvent<Name>) => void) | { handleEvent(event: ClientEvent<Name>): void } | null,
    options?: AddEventListenerOptions | boolean,
  ): void;
  removeEventListener<Name extends keyof ClientEvents>(
    type: Name,
    listener: ((event: ClientEvent<Name>) => void) | { handleEvent(event: ClientEvent<Name>): void } | null,
    options?: EventListenerOptions | boolean,
  ): void;
}

/** A client that has connected. */
export function connect(url: string | URL, options?: ClientOptions): Promise<Client>;

/** One frame of the wire. `flags` without the codec. */
export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly codec: number;
  readonly request: number;
  /** The whole of it, head included. */
  readonly data: Uint8Array;
  readonly view: DataView;
}

export interface MessageFields {
  topic: string;
  tag?: string;
  sender: string;
  body: Uint8Array;
  id?: number | string;
  flags?: number;
  codec?: number;
  seq?: number;
  time?: number;
  attempt?: number;
}

/** The wire itself, for tests and for those who need a frame in their hands. */
export const wire: {
  readonly FrameType: Readonly<Record<string, number>>;
  readonly Flag: Readonly<Record<"DURABLE" | "RETRY" | "REDELIVERED" | "NO_ECHO" | "HISTORY", number>>;
  readonly CODECS: readonly CodecName[];
  encodeFrame(type: number, body?: unknown, request?: number): Uint8Array;
  encodeMessage(fields: MessageFields): Uint8Array;
  encodePosition(type: number, seq: number, topic: string): Uint8Array;
  decodeFrames(data: Uint8Array): Generator<Frame>;
  decodeBody(frame: Frame): Record<string, unknown>;
  decodeMessage(frame: Frame, codecs?: Partial<Record<CodecName, Codec>>): Message;
  decodePosition(frame: Frame): { seq: number; topic: string };
  decodeReceipt(frame: Frame): Receipt;
};
