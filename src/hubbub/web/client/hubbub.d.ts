/** Types of hubbub.js. Fields in snake_case have the form of the server (docs/protocol.md). */

import type { Commands, Entry, Message as StoredMessage, MessageType, PublicUser as User, Role } from "./frames.d.ts";
import type { Room as RoomInfo, Session, SessionList } from "./frames.d.ts";

export type { Commands, Entry, MessageType, Role, RoomInfo, Session, StoredMessage, User };
export type { MemberChanged, MemberJoined, MemberLeft, MessageDeleted, MessageEdited } from "./frames.d.ts";
export type { MessageSent, RoleChanged, RoomChanged } from "./frames.d.ts";

export type State = "idle" | "connecting" | "catching_up" | "live" | "waiting" | "stopped";
export type Status = "sending" | "sent" | "failed";

/** The commands of docs/protocol.md. */
export type CommandType = keyof Commands;

/** A message that a room shows. */
export interface Message extends Omit<StoredMessage, "seq"> {
  /** Null until the server has stored the message. */
  readonly seq: number | null;
  readonly status: Status;
  /** For `sending` and `failed`: whether it is stored on the disk and so outlives the page. */
  readonly isStored?: boolean;
  /** The reason for `failed`: an error of docs/protocol.md, or `too-large`. */
  readonly error?: string | null;
  /** The same as text, such as the message of an error that a hook of the gateway raised. */
  readonly detail?: string | null;
}

/** The reason why the client has stopped: a code of docs/protocol.md. */
export interface Reason {
  readonly code: number;
  readonly detail: string | null;
}

export class HubbubError extends Error {
  constructor(frame: {
    error: string;
    detail?: string;
    retry?: boolean;
    after?: number | null;
    field?: string | null;
    outcome_unknown?: boolean;
  });
  /** An error of docs/protocol.md, or `timeout`, `disconnected`, `stopped`, `too-large` or `not-logged-in`. */
  readonly error: string;
  readonly retry: boolean;
  readonly after: number | null;
  readonly field: string | null;
  /** Whether the command may have been done: it was sent and got no answer. */
  readonly outcomeUnknown: boolean;
}

/** A UUID of version 7. The ids of one tab sort in the order of their creation. */
export function newId(): string;

export interface Events {
  /** The state of the connection has changed. */
  state: (state: State, reason: Reason | null) => void;
  /** The connection is open. With `isFresh` nothing was resumed, and loaded rooms are reloaded. */
  ready: (isFresh: boolean) => void;
  /** The list of rooms has changed, or its content. */
  rooms: () => void;
  /** The messages, members or read marks of a room have changed. */
  messages: (room: Room) => void;
  /** A new message of another user. */
  message: (room: Room, message: StoredMessage) => void;
  /** An entry of a log, once and in order. After a gap the room is reloaded. */
  entry: (entry: Entry, isGap: boolean) => void;
  typing: (room: Room) => void;
  /** The presence of this user has changed, or with null that of any user. */
  presence: (userId: string | null) => void;
  /** Profiles were loaded or have changed. */
  people: () => void;
  /** The room was left or deleted. */
  gone: (room: Room) => void;
}

export interface Options {
  /** The path or URL of the gateway, such as `/chat`. */
  url: string | URL;
  /**
   * The id of the user, so that messages can be written before the first connection. If the gateway authenticates the
   * client as another user, the client stops with 4401.
   */
  userId?: string;
  /** For applications without a cookie. It is called before each connection, and may take up to 30 seconds. */
  getToken?: () => string | null | Promise<string | null>;
  /** The `token` of an earlier client whose messages the application has stored. */
  resume?: string;
  /** The name of the database, the lock and the channel of the tabs. By default it is made of the URL and `userId`. */
  name?: string;
  WebSocket?: unknown;
  fetch?: typeof fetch | null;
  indexedDB?: IDBFactory | null;
  locks?: unknown;
  BroadcastChannel?: unknown;
  page?: unknown;
  random?: () => number;
}

export interface RequestOptions {
  /** Do not repeat the command after an interruption. Set this for commands that must not be done twice. */
  once?: boolean;
  /** The time after which it fails with `timeout`. Default: 30. */
  seconds?: number;
}

export class Room {
  readonly id: string;
  readonly name: string;
  readonly description: string | null;
  readonly isPrivate: boolean;
  readonly isDirect: boolean;
  readonly isGone: boolean;
  readonly isLoaded: boolean;
  readonly hasOlder: boolean;
  readonly role: Role | null;
  /** The other user of a direct room. */
  readonly partnerId: string | null;
  readonly createdBy: string | null;
  readonly lastMessage: StoredMessage | null;
  readonly lastReadSeq: number;
  readonly activeAt: string;
  /** The roles by user id, once `loadMembers` has been called. */
  readonly members: ReadonlyMap<string, Role>;
  /** The application's metadata of each member in this room, by user id. Members without any are missing. */
  readonly memberMetadata: ReadonlyMap<string, Readonly<Record<string, unknown>>>;
  /** The `seq` up to which other members have read, as far as it is known. */
  readonly readMarks: ReadonlyMap<string, number>;
  /** The oldest first, unsent messages last. A new array after each change. */
  readonly messages: readonly Message[];
  /** The number of messages of others after the read mark. The server counts up to 100. */
  readonly unread: number;
  /** The ids of the other users who are typing. */
  readonly typing: string[];
  message(id: string): Message | undefined;
  load(): Promise<void>;
  /** Returns whether there are more. */
  loadOlder(limit?: number): Promise<boolean>;
  /** Forget all loaded messages except the newest, by default 100. For a room that is no longer shown. */
  forgetOlder(keep?: number): void;
  send(
    content: string,
    options?: { replyTo?: string | null; messageType?: MessageType; metadata?: Record<string, unknown> | null },
  ): Message;
  retry(id: string): void;
  discard(id: string): void;
  /** Not stored for later. Without a connection it rejects with `timeout` after 30 seconds. */
  edit(id: string, content: string): Promise<void>;
  /** Like `edit`. `discard` removes an unsent message. */
  delete(id: string): Promise<void>;
  markRead(seq?: number | null): void;
  /** Mark everything from this `seq` on as unread. */
  markUnread(seq: number): Promise<void>;
  /** The readers of a message. `readAt` is null if the room keeps no times. */
  readers(id: string): Promise<{ userId: string; readAt: string | null }[]>;
  startTyping(): void;
  stopTyping(): void;
  loadMembers(): Promise<ReadonlyMap<string, Role>>;
  invite(userId: string): Promise<void>;
  setRole(userId: string, role: Role): Promise<void>;
  /** End the membership of another user. */
  remove(userId: string): Promise<void>;
  /** Change the given properties. */
  update(changes: { name?: string; description?: string | null; isPrivate?: boolean }): Promise<void>;
  leave(): Promise<void>;
  /** Delete the room with all its messages, for all members. */
  deleteRoom(): Promise<void>;
}

export class Client {
  constructor(options: Options);
  readonly state: State;
  readonly reason: Reason | null;
  readonly userId: string | null;
  readonly users: ReadonlyMap<string, User>;
  readonly limits: Readonly<Record<string, number>>;
  readonly token: string;
  readonly isDurable: boolean;
  readonly isLeader: boolean;
  readonly rooms: readonly Room[];
  /** Returns a function that removes the listener. */
  on<Name extends keyof Events>(name: Name, listener: Events[Name]): () => void;
  start(): void;
  stop(): void;
  clear(): Promise<void>;
  room(id: string): Room | undefined;
  user(id: string | null): User | undefined;
  isOnline(userId: string): boolean | undefined;
  request<Type extends CommandType>(
    command: Commands[Type]["frame"] & { type: Type },
    options?: RequestOptions,
  ): Promise<Commands[Type]["result"]>;
  /** A command of the application. */
  request(command: { type: string; [field: string]: unknown }, options?: RequestOptions): Promise<any>;
  createRoom(name: string, options?: { description?: string | null; isPrivate?: boolean }): Promise<Room>;
  direct(userId: string): Promise<Room>;
  join(roomId: string): Promise<Room>;
  publicRooms(prefix?: string): Promise<RoomInfo[]>;
  searchUsers(prefix: string, limit?: number): Promise<User[]>;
  /** Change the given properties of the user's own profile. Null clears a property. */
  updateProfile(changes: {
    username?: string;
    displayName?: string | null;
    avatarUrl?: string | null;
    metadata?: Record<string, unknown> | null;
  }): Promise<User>;
  sessions(): Promise<SessionList>;
  revokeSession(id: string): Promise<{ revoked: boolean }>;
  watch(roomIds: readonly string[]): void;
}
