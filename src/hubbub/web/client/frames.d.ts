/** The types of docs/protocol.md. Generated from those of the server by `make types`. */

/**
 * The first frame: who the client is, and how far it has come. `more`: further positions follow.
 *
 * With `pages`, the fingerprints of all positions one after the other, the server asks for those that it needs.
 */
export interface Hello {
  readonly type: "hello";
  readonly token?: string | null;
  readonly device?: string | null;
  readonly positions?: Readonly<Record<string, string>> | null;
  readonly pages?: string | null;
  readonly more?: boolean;
}

/** Further positions of a client in many rooms, after `hello` or `ask`. */
export interface Positions {
  readonly type: "positions";
  readonly positions: Readonly<Record<string, string>>;
  readonly more?: boolean;
}

/** A message. The client makes its `id`, so that it can repeat the command. */
export interface Send {
  readonly type: "send";
  readonly room_id: string;
  readonly content: string;
  readonly id?: string | null;
  readonly message_type?: string;
  readonly reply_to?: string | null;
  readonly metadata?: Readonly<Record<string, unknown>> | null;
}

export interface Edit {
  readonly type: "edit";
  readonly message_id: string;
  readonly content: string;
  readonly room_id?: string | null;
}

export interface Delete {
  readonly type: "delete";
  readonly message_id: string;
  readonly room_id?: string | null;
}

/** The user has read the room up to this seq. */
export interface Read {
  readonly type: "read";
  readonly room_id: string;
  readonly up_to: number;
}

export interface Typing {
  readonly type: "typing";
  readonly room_id: string;
  readonly is_typing: boolean;
}

/** A page of messages: the newest, or before or after a seq, or around a seq or a message. */
export interface History {
  readonly type: "page";
  readonly room_id: string;
  readonly before?: number | null;
  readonly after?: number | null;
  readonly around?: number | string | null;
  readonly limit?: number;
}

export interface Rooms {
  readonly type: "rooms";
  readonly limit?: number;
  readonly after?: string | null;
}

export interface OneRoom {
  readonly type: "room";
  readonly room_id: string;
}

export interface PublicRooms {
  readonly type: "public_rooms";
  readonly prefix?: string;
  readonly limit?: number;
  readonly after?: string | null;
}

export interface Members {
  readonly type: "members";
  readonly room_id: string;
  readonly limit?: number;
  readonly after?: string | null;
}

/** A room. The client makes its `id`, so that it can repeat the command. */
export interface Create {
  readonly type: "create";
  readonly name: string;
  readonly id?: string | null;
  readonly description?: string | null;
  readonly is_private?: boolean;
  readonly metadata?: Readonly<Record<string, unknown>> | null;
}

export interface Join {
  readonly type: "join";
  readonly room_id: string;
}

export interface Leave {
  readonly type: "leave";
  readonly room_id: string;
}

export interface Invite {
  readonly type: "invite";
  readonly room_id: string;
  readonly user_id: string;
  readonly role?: Role;
}

/**
 * The rights of a member in a room. The first member of a room, its creator, is its admin.
 *
 * The last admin stays admin and member as long as there are other members (`room_users.remove`).
 */
export type Role = "admin" | "member" | "moderator";

export interface Direct {
  readonly type: "direct";
  readonly user_id: string;
}

/** The user has not read the room from this seq on. */
export interface Unread {
  readonly type: "unread";
  readonly room_id: string;
  readonly from_seq: number;
}

export interface Readers {
  readonly type: "readers";
  readonly message_id: string;
  readonly room_id?: string | null;
  readonly limit?: number;
  readonly after?: string | null;
}

/** Change what is given. */
export interface UpdateRoom {
  readonly type: "update_room";
  readonly room_id: string;
  readonly name?: string | null;
  readonly description?: string | null;
  readonly is_private?: boolean | null;
  readonly metadata?: Readonly<Record<string, unknown>> | null;
}

export interface DeleteRoom {
  readonly type: "delete_room";
  readonly room_id: string;
}

export interface Remove {
  readonly type: "remove";
  readonly room_id: string;
  readonly user_id: string;
}

export interface SetRole {
  readonly type: "set_role";
  readonly room_id: string;
  readonly user_id: string;
  readonly role: Role;
}

/** Change what is given. Null clears it. */
export interface UpdateProfile {
  readonly type: "update_profile";
  readonly username?: string | null;
  readonly display_name?: string | null;
  readonly avatar_url?: string | null;
  readonly metadata?: Readonly<Record<string, unknown>> | null;
}

/** The rooms of whose members the presence is wanted, instead of those before. */
export interface Watch {
  readonly type: "watch";
  readonly room_ids: readonly string[];
}

/** The users with these ids, or those whose name begins with the prefix. */
export interface Users {
  readonly type: "users";
  readonly prefix?: string | null;
  readonly user_ids?: readonly string[] | null;
  readonly limit?: number;
}

export interface Me {
  readonly type: "me";
}

export interface Sessions {
  readonly type: "sessions";
}

export interface Revoke {
  readonly type: "revoke";
  readonly session_id: string;
}

/** A new token, before the old one expires. The connection ends with the session of the newest one. */
export interface Auth {
  readonly type: "auth";
  readonly token: string;
}

/** Answers `pages`: the client sends the positions of these pages, as `positions`. */
export interface Ask {
  readonly type: "ask";
  readonly pages: readonly number[];
}

/** The answer to `hello`. From here on events come. */
export interface Ready {
  readonly type: "ready";
  readonly user_id: string;
  readonly resumed: boolean;
  readonly positions: Readonly<Record<string, string>>;
  readonly ping_seconds: number;
  readonly spread_seconds: number;
  readonly limits: Limits;
  readonly expires_in_seconds: number | null;
  readonly protocol: number;
}

/**
 * The limits of a connection. `ready` sends them to the client.
 *
 * `frame_bytes` is what the ASGI server has to be set to, because an application sees a frame when it is whole:
 * `uvicorn --ws-max-size 65536`. `connections` is how many a user may have in one process.
 */
export interface Limits {
  readonly frame_bytes: number;
  readonly commands: number;
  readonly frames_per_second: number;
  readonly burst: number;
  readonly connections: number;
  readonly watched_rooms: number;
}

/** The command with this `ref` was done. */
export interface Ack {
  readonly type: "ack";
  readonly ref: number | null;
  readonly result: unknown;
}

/** The command with this `ref` was not done. `error` is the type of the problem without `urn:hubbub:`. */
export interface Error {
  readonly type: "error";
  readonly ref: number | null;
  readonly error: string;
  readonly detail: string;
  readonly field: string | null;
  readonly retry: boolean;
  readonly outcome_unknown: boolean;
  readonly retry_after_seconds: number | null;
}

/** Nothing else was sent for a while. No answer is expected. */
export interface Ping {
  readonly type: "ping";
}

/** The last frame. With `reconnect` the client comes back after a random time of up to `within_seconds`. */
export interface Bye {
  readonly type: "bye";
  readonly code: number;
  readonly reconnect: boolean;
  readonly within_seconds: number;
  readonly reason: string;
}

/** A new message in its current state. It may have been edited or deleted since it was sent. */
export interface MessageSent {
  readonly type: "message_sent";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly message: Message;
}

/**
 * A message. `seq` is its position in the log of the room, and the only order that holds.
 *
 * `user_id` is null once the author's account is deleted. A deleted message stays as a tombstone: `deleted_at`
 * is set, `content` is empty and `metadata` is null. `reply_to` is a message of the same room. `metadata` is a
 * JSON object of the application's. Do not change it in place, because callers that read one page at the same
 * time share its messages.
 */
export interface Message {
  readonly id: string;
  readonly room_id: string;
  readonly seq: number;
  readonly user_id: string | null;
  readonly content: string;
  readonly message_type: MessageType;
  readonly is_edited: boolean;
  readonly created_at: string;
  readonly updated_at: string;
  readonly deleted_at: string | null;
  readonly reply_to: string | null;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** How to interpret the content of a message. hubbub stores it, and gives it no other meaning. */
export type MessageType = "file" | "image" | "text";

/** A message has other content. `message` is its present state, `by` is the user who edited it. */
export interface MessageEdited {
  readonly type: "message_edited";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly by: string | null;
  readonly message: Message;
}

/** A message was deleted: `message` is the tombstone, `by` is the user who deleted it. */
export interface MessageDeleted {
  readonly type: "message_deleted";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly by: string | null;
  readonly message: Message;
}

/** A user joined the room. */
export interface MemberJoined {
  readonly type: "member_joined";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly user_id: string;
  readonly role: Role;
}

/** A user left or was removed. For that user it is the last entry, until the user joins again. */
export interface MemberLeft {
  readonly type: "member_left";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly user_id: string;
}

/** A member has another role. */
export interface RoleChanged {
  readonly type: "role_changed";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly user_id: string;
  readonly role: Role;
}

/** The membership of a user has other metadata. */
export interface MemberChanged {
  readonly type: "member_changed";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly user_id: string;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/**
 * The room has another name, description, privacy, receipts setting or metadata, or several of these.
 *
 * They are as the change by `by` has left them.
 */
export interface RoomChanged {
  readonly type: "room_changed";
  readonly room_id: string;
  readonly seq: number;
  readonly cursor: string;
  readonly at: string;
  readonly by: string | null;
  readonly name: string;
  readonly description: string | null;
  readonly is_private: boolean;
  readonly keeps_receipts: boolean | null;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** The end of a room's log for this user: the room was deleted, or the user had left it while not following. */
export interface RoomGone {
  readonly type: "room_gone";
  readonly room_id: string;
}

/**
 * The client cannot continue this room from its cursor: reload the room, then continue from `cursor`.
 *
 * `rewound`: the log no longer holds entries that the client has seen, after a restore or a failover that lost
 * commits. `too_far_behind`: more than `Options.follow_at_most_behind` entries came since, a page is quicker.
 */
export interface Resync {
  readonly type: "resync";
  readonly room_id: string;
  readonly cursor: string;
  readonly reason: "rewound" | "too_far_behind";
}

/** A member of the room started typing, or stopped. */
export interface TypingChanged {
  readonly type: "typing_changed";
  readonly room_id: string;
  readonly user_id: string;
  readonly is_typing: boolean;
}

/** A user came online, with the first of their devices, or went offline, with the last. */
export interface PresenceChanged {
  readonly type: "presence_changed";
  readonly user_id: string;
  readonly is_online: boolean;
}

/** A member has read the room up to and including `last_read_seq`, or marked what follows as unread. */
export interface ReadMarkChanged {
  readonly type: "read_mark_changed";
  readonly room_id: string;
  readonly user_id: string;
  readonly last_read_seq: number;
}

/** A user has another username, display name, picture or metadata. The fields have the current values. */
export interface ProfileChanged {
  readonly type: "profile_changed";
  readonly user_id: string;
  readonly username: string;
  readonly avatar_url: string | null;
  readonly display_name: string | null;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** Read marks or profiles may have changed without an event: read them again. */
export interface Missed {
  readonly type: "missed";
}

export interface ReadUpTo {
  readonly last_read_seq: number;
}

/** A `MessagePage`, with the people who are on it. */
export interface HistoryPage {
  readonly room_id: string;
  readonly items: readonly Message[];
  readonly has_older: boolean;
  readonly has_newer: boolean;
  readonly cursor: string | null;
  readonly users: readonly PublicUser[];
}

/**
 * A user as other people see them: without an email. `display_name` is what to show, null for the username.
 *
 * `metadata` is a JSON object of the application's. All people of the chat may see it.
 */
export interface PublicUser {
  readonly id: string;
  readonly username: string;
  readonly display_name: string | null;
  readonly avatar_url: string | null;
  readonly is_online: boolean;
  readonly last_seen: string | null;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** A page of rooms, with the other users of direct rooms and the authors of the newest messages. */
export interface RoomList {
  readonly items: readonly RoomSummary[];
  readonly next: string | null;
  readonly users: readonly PublicUser[];
}

/**
 * A room as one of its members sees it in a list.
 *
 * `unread` counts messages of other users after the read mark among the newest 5,000, up to the cap of the call.
 * `partner_id` is the other user of a direct room. `last_message` is the newest that is not deleted. `active_at`
 * orders the list: when the newest message came, deleted or not, or the member joined. `cursor` is that of
 * `last_message`, from which `hub.follow` goes on, and null without one.
 */
export interface RoomSummary {
  readonly room: Room;
  readonly role: Role;
  readonly last_read_seq: number;
  readonly unread: number;
  readonly partner_id: string | null;
  readonly last_message: Message | null;
  readonly active_at: string;
  readonly cursor: string | null;
}

/**
 * A room. `last_seq` is the head of its log: the seq of its newest message or event, 0 in an empty room.
 *
 * `keeps_receipts` is whether hubbub stores a receipt per message and reader. null, the default, means in direct
 * rooms and as long as the room is small (`ReadReceipts`). `metadata` is a JSON object of the application's.
 */
export interface Room {
  readonly id: string;
  readonly name: string;
  readonly description: string | null;
  readonly is_private: boolean;
  readonly is_direct: boolean;
  readonly created_by: string | null;
  readonly last_seq: number;
  readonly created_at: string;
  readonly updated_at: string;
  readonly keeps_receipts: boolean | null;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** A `RoomSummary`, with the people that it names. */
export interface RoomDetails {
  readonly room: Room;
  readonly role: Role;
  readonly last_read_seq: number;
  readonly unread: number;
  readonly partner_id: string | null;
  readonly last_message: Message | null;
  readonly active_at: string;
  readonly cursor: string | null;
  readonly users: readonly PublicUser[];
}

/** One page of a list. `next` is the cursor of the next page, null on the last one. */
export interface PageOfRoom {
  readonly items: readonly Room[];
  readonly next: string | null;
}

/** A page of memberships, with their users. */
export interface MemberPage {
  readonly items: readonly RoomUser[];
  readonly next: string | null;
  readonly users: readonly PublicUser[];
}

/**
 * A membership. The member has read all messages up to and including `last_read_seq`.
 *
 * `last_read_message_id` is the newest message at or before it. It is null until a message is marked as read for
 * the member: a new member has nothing unread, but has read nothing either. `metadata` is a JSON object of the
 * application's.
 */
export interface RoomUser {
  readonly room_id: string;
  readonly user_id: string;
  readonly joined_at: string;
  readonly role: Role;
  readonly last_read_message_id: string | null;
  readonly last_read_seq: number;
  readonly metadata: Readonly<Record<string, unknown>> | null;
}

/** A page of the readers of a message, with their users. */
export interface ReaderPage {
  readonly items: readonly ReadReceipt[];
  readonly next: string | null;
  readonly users: readonly PublicUser[];
}

/** A member has read a message. `read_at` is null where the room stores only read marks (large rooms). */
export interface ReadReceipt {
  readonly message_id: string;
  readonly user_id: string;
  readonly read_at: string | null;
}

/** The members who are online. */
export interface Online {
  readonly online: readonly string[];
}

/** Users. `rest` are the ids that did not fit into the answer: ask for them next. */
export interface People {
  readonly items: readonly PublicUser[];
  readonly rest: readonly string[];
}

/** The sessions of the user. `current` is the id of one's own. */
export interface SessionList {
  readonly items: readonly Session[];
  readonly current: string | null;
}

/**
 * A login of a user on one device. `id` is safe to show and to revoke by; it is not the token.
 *
 * `data` is the application's. `seen_at` is when the session was last looked up, to the minute. It ends at
 * `expires_at`, however much it is used.
 */
export interface Session {
  readonly id: string;
  readonly user_id: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly created_at: string;
  readonly seen_at: string;
  readonly expires_at: string;
}

/** Whether there was such a session. */
export interface Revoked {
  readonly revoked: boolean;
}

/** For how many seconds a signed token is valid. null: as long as its session. */
export interface Renewed {
  readonly expires_in_seconds: number | null;
}

/** An entry of the log of a room. Later releases may add others. */
export type Entry =
  | MessageSent
  | MessageEdited
  | MessageDeleted
  | MemberJoined
  | MemberLeft
  | RoleChanged
  | MemberChanged
  | RoomChanged;

/** A frame of the server. Later releases may add others. */
export type ServerFrame =
  | Ask
  | Ready
  | Ack
  | Error
  | Ping
  | Bye
  | MessageSent
  | MessageEdited
  | MessageDeleted
  | MemberJoined
  | MemberLeft
  | RoleChanged
  | MemberChanged
  | RoomChanged
  | RoomGone
  | Resync
  | TypingChanged
  | PresenceChanged
  | ReadMarkChanged
  | ProfileChanged
  | Missed;

/** The commands by type: the frame without its `ref`, and the result. */
export interface Commands {
  readonly send: { readonly frame: Send; readonly result: Message };
  readonly edit: { readonly frame: Edit; readonly result: Message };
  readonly delete: { readonly frame: Delete; readonly result: Message };
  readonly read: { readonly frame: Read; readonly result: ReadUpTo };
  readonly typing: { readonly frame: Typing; readonly result: null };
  readonly page: { readonly frame: History; readonly result: HistoryPage };
  readonly rooms: { readonly frame: Rooms; readonly result: RoomList };
  readonly room: { readonly frame: OneRoom; readonly result: RoomDetails };
  readonly public_rooms: { readonly frame: PublicRooms; readonly result: PageOfRoom };
  readonly members: { readonly frame: Members; readonly result: MemberPage };
  readonly create: { readonly frame: Create; readonly result: Room };
  readonly join: { readonly frame: Join; readonly result: RoomUser };
  readonly leave: { readonly frame: Leave; readonly result: null };
  readonly invite: { readonly frame: Invite; readonly result: RoomUser };
  readonly direct: { readonly frame: Direct; readonly result: Room };
  readonly unread: { readonly frame: Unread; readonly result: ReadUpTo };
  readonly readers: { readonly frame: Readers; readonly result: ReaderPage };
  readonly update_room: { readonly frame: UpdateRoom; readonly result: Room };
  readonly delete_room: { readonly frame: DeleteRoom; readonly result: null };
  readonly remove: { readonly frame: Remove; readonly result: null };
  readonly set_role: { readonly frame: SetRole; readonly result: RoomUser };
  readonly update_profile: { readonly frame: UpdateProfile; readonly result: PublicUser };
  readonly watch: { readonly frame: Watch; readonly result: Online };
  readonly users: { readonly frame: Users; readonly result: People };
  readonly me: { readonly frame: Me; readonly result: PublicUser };
  readonly sessions: { readonly frame: Sessions; readonly result: SessionList };
  readonly revoke: { readonly frame: Revoke; readonly result: Revoked };
  readonly auth: { readonly frame: Auth; readonly result: Renewed };
}
