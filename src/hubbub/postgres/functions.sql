-- The writes of hubbub as functions, for a database whose rooms are distributed over several nodes by Citus.
--
-- `hubbub distribute` makes them, and the statements of the repositories call them there (`Statement.distributed`).
-- Their names in the database end with a digest (`hubbub.postgres.statement`).
-- Citus runs a function on the node of its `room`, in one round trip. It runs the INSERT of a statement that makes
-- another change as well on its coordinator, which takes several times as long.
--
-- Each statement is about one room, which it equates with the parameter for each of its tables. Parameters and
-- variables have names that no column has. Accounts and rooms in hubbub_deletions are being deleted.

CREATE OR REPLACE FUNCTION hubbub_send(
    message uuid, room uuid, author uuid, body text, type_of_message text, original uuid, data text
) RETURNS SETOF messages LANGUAGE plpgsql AS $$
DECLARE
    next_seq bigint;
BEGIN
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
        AND EXISTS (SELECT 1 FROM room_users WHERE room_users.room_id = room AND room_users.user_id = author)
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, author))
        AND (
            original IS NULL
            OR EXISTS (SELECT 1 FROM messages WHERE messages.room_id = room AND messages.id = original)
        )
    RETURNING rooms.last_seq INTO next_seq;
    IF next_seq IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata, created_at, updated_at)
    VALUES (message, room, next_seq, author, body, type_of_message, original, data::jsonb, now(), now())
    RETURNING messages.*;
END
$$;

-- The parameters are those of the statement for messages to several rooms. Here they are all for `room`.
CREATE OR REPLACE FUNCTION hubbub_send_many(
    room uuid,
    ids uuid[],
    room_ordinals text,
    ordinals text,
    authors uuid[],
    bodies text[],
    types text[],
    replies uuid[],
    data text[],
    counts text,
    originals uuid[],
    rooms_of_originals uuid[],
    lock_wait text,
    OUT old_seqs bigint[],
    OUT sent bigint,
    OUT sent_at timestamptz
) RETURNS record LANGUAGE plpgsql AS $$
DECLARE
    distinct_authors bigint := (SELECT count(DISTINCT one.id) FROM unnest(authors) AS one (id));
    old_seq bigint;
BEGIN
    sent := 0;
    UPDATE rooms
    SET last_seq = last_seq + cardinality(ids)
    WHERE rooms.id = room
        AND (
            SELECT count(*) FROM room_users WHERE room_users.room_id = room AND room_users.user_id = ANY (authors)
        ) = distinct_authors
        AND (
            SELECT count(*) FROM messages WHERE messages.room_id = room AND messages.id = ANY (originals)
        ) = cardinality(originals)
        AND NOT EXISTS (
            SELECT 1
            FROM hubbub_deletions
            WHERE hubbub_deletions.id = room
                OR hubbub_deletions.id = ANY (authors)
        )
    RETURNING rooms.last_seq - cardinality(ids) INTO old_seq;
    IF old_seq IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata, created_at, updated_at)
    SELECT
        draft.id,
        rooms.id,
        old_seq + draft.ordinal,
        draft.author,
        draft.body,
        COALESCE(draft.type_of_message, 'text'),
        draft.original,
        draft.json::jsonb,
        now(),
        now()
    FROM rooms
    CROSS JOIN unnest(ids, ordinals::integer[], authors, bodies, types, replies, data)
        AS draft (id, ordinal, author, body, type_of_message, original, json)
    WHERE rooms.id = room;
    GET DIAGNOSTICS sent = ROW_COUNT;
    old_seqs := ARRAY[old_seq];
    sent_at := now();
END
$$;

-- Without a text the message is deleted, and otherwise edited. The message is locked before the head moves.
CREATE OR REPLACE FUNCTION hubbub_change_message(room uuid, message uuid, actor uuid, body text)
RETURNS SETOF messages LANGUAGE plpgsql AS $$
DECLARE
    next_seq bigint;
    changed messages%ROWTYPE;
BEGIN
    PERFORM 1
    FROM messages
    JOIN room_users
        ON room_users.room_id = room
        AND room_users.user_id = actor
    WHERE messages.room_id = room
        AND messages.id = message
        AND messages.deleted_at IS NULL
        AND (messages.user_id = actor OR room_users.role IN ('admin', 'moderator'))
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, actor))
        AND (
            body IS NULL
            OR (
                messages.content <> body
                AND (body <> '' OR messages.metadata IS NOT NULL OR messages.message_type <> 'text')
            )
        )
    FOR NO KEY UPDATE OF messages;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, message_id, user_id, payload)
    VALUES (room, next_seq, CASE WHEN body IS NULL THEN 'deleted' ELSE 'edited' END, message, actor, '{}');
    IF body IS NULL THEN
        UPDATE messages
        SET content = '', metadata = NULL, deleted_at = now(), updated_at = now()
        WHERE messages.room_id = room
            AND messages.id = message
        RETURNING messages.* INTO changed;
    ELSE
        UPDATE messages
        SET content = body, is_edited = true, updated_at = now()
        WHERE messages.room_id = room
            AND messages.id = message
        RETURNING messages.* INTO changed;
    END IF;
    IF EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = changed.user_id) THEN
        changed.user_id := NULL;
    END IF;
    RETURN NEXT changed;
END
$$;

-- The membership is locked first, so that a watermark only moves forward.
CREATE OR REPLACE FUNCTION hubbub_mark_read(
    room uuid,
    reader uuid,
    up_to bigint,
    members_with_receipts integer,
    most_receipts integer,
    OUT of_room uuid,
    OUT of_user uuid,
    OUT watermark bigint,
    OUT has_moved boolean,
    OUT is_shown boolean
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    old_seq bigint;
    new_seq bigint;
BEGIN
    SELECT room_users.last_read_seq
    INTO old_seq
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id = reader
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, reader))
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT
        LEAST(up_to, rooms.last_seq),
        COALESCE(
            rooms.keeps_receipts,
            rooms.direct_key IS NOT NULL
            OR (
                SELECT count(*)
                FROM (SELECT 1 FROM room_users WHERE room_users.room_id = room LIMIT members_with_receipts + 1) AS few
            ) <= members_with_receipts
        )
    INTO new_seq, is_shown
    FROM rooms
    WHERE rooms.id = room;
    IF new_seq IS NULL THEN
        RETURN;
    END IF;
    of_room := room;
    of_user := reader;
    watermark := GREATEST(old_seq, new_seq);
    has_moved := new_seq > old_seq;
    IF has_moved THEN
        UPDATE room_users
        SET last_read_seq = new_seq,
            last_read_message_id = (
                SELECT messages.id
                FROM messages
                WHERE messages.room_id = room
                    AND messages.seq <= new_seq
                ORDER BY messages.seq DESC
                LIMIT 1
            )
        WHERE room_users.room_id = room
            AND room_users.user_id = reader;
        IF is_shown THEN
            INSERT INTO message_read_receipts (message_id, user_id, room_id, read_at)
            SELECT messages.id, reader, messages.room_id, now()
            FROM messages
            WHERE messages.room_id = room
                AND messages.seq > old_seq
                AND messages.seq <= new_seq
                AND messages.user_id IS DISTINCT FROM reader
                AND messages.deleted_at IS NULL
            ORDER BY messages.seq DESC
            LIMIT most_receipts
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;

-- The joining of each member, in their order, is an entry of the log.
CREATE OR REPLACE FUNCTION hubbub_create_room(
    room uuid,
    title text,
    about text,
    hidden boolean,
    creator uuid,
    receipts boolean,
    pair bytea,
    users_of_room uuid[],
    role_of_users text,
    data text
) RETURNS SETOF rooms LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = ANY (users_of_room)) THEN
        RETURN;
    END IF;
    INSERT INTO rooms (
        id, name, description, is_private, created_by, keeps_receipts, direct_key, last_seq, metadata, created_at, updated_at
    )
    VALUES (
        room, title, about, hidden, creator, receipts, pair, cardinality(users_of_room), data::jsonb, now(), now()
    );
    INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq, joined_at)
    SELECT rooms.id, member.id, role_of_users, rooms.last_seq, member.ordinal, now()
    FROM rooms
    CROSS JOIN unnest(users_of_room) WITH ORDINALITY AS member (id, ordinal)
    WHERE rooms.id = room;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    SELECT rooms.id, member.ordinal, 'joined', member.id, jsonb_build_object('role', role_of_users), now()
    FROM rooms
    CROSS JOIN unnest(users_of_room) WITH ORDINALITY AS member (id, ordinal)
    WHERE rooms.id = room;
    RETURN QUERY SELECT rooms.* FROM rooms WHERE rooms.id = room;
END
$$;

-- Users who are members already are left out. A user who is being deleted fails the foreign key, as `nobody`.
CREATE OR REPLACE FUNCTION hubbub_add_members(
    room uuid, new_users uuid[], new_roles text[], lock_wait text, only_public boolean[], nobody uuid
) RETURNS SETOF room_users LANGUAGE plpgsql AS $$
DECLARE
    added uuid[];
    added_roles text[];
    old_seq bigint;
BEGIN
    PERFORM 1 FROM rooms WHERE rooms.id = room FOR NO KEY UPDATE;
    SELECT
        array_agg(
            CASE
                WHEN requested.id <> ALL (ARRAY(SELECT hubbub_deletions.id FROM hubbub_deletions)) THEN requested.id
                ELSE nobody
            END
            ORDER BY requested.ordinal
        ),
        array_agg(requested.of_role ORDER BY requested.ordinal)
    INTO added, added_roles
    FROM rooms
    CROSS JOIN unnest(new_users, new_roles, only_public)
        WITH ORDINALITY AS requested (id, of_role, if_public, ordinal)
    WHERE rooms.id = room
        AND rooms.direct_key IS NULL
        AND NOT (requested.if_public AND (rooms.is_private OR requested.of_role <> 'member'))
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = room)
        AND NOT EXISTS (
            SELECT 1
            FROM room_users
            WHERE room_users.room_id = room
                AND room_users.user_id = requested.id
                AND room_users.user_id <> ALL (ARRAY(SELECT hubbub_deletions.id FROM hubbub_deletions))
        );
    IF added IS NULL THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + cardinality(added)
    WHERE rooms.id = room
    RETURNING rooms.last_seq - cardinality(added) INTO old_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    SELECT rooms.id, old_seq + member.ordinal, 'joined', member.id, jsonb_build_object('role', member.of_role), now()
    FROM rooms
    CROSS JOIN unnest(added, added_roles) WITH ORDINALITY AS member (id, of_role, ordinal)
    WHERE rooms.id = room;
    INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq, joined_at)
    SELECT rooms.id, member.id, member.of_role, rooms.last_seq, old_seq + member.ordinal, now()
    FROM rooms
    CROSS JOIN unnest(added, added_roles) WITH ORDINALITY AS member (id, of_role, ordinal)
    WHERE rooms.id = room;
    RETURN QUERY
    SELECT room_users.*
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id = ANY (added)
    ORDER BY room_users.joined_seq;
END
$$;

-- The membership of the actor is locked first, so that it cannot end before this is committed, and then the room, so
-- that the next statement sees each member who has joined. A user who is being deleted fails the foreign key, as
-- `nobody`.
CREATE OR REPLACE FUNCTION hubbub_add_member(
    room uuid, new_user uuid, new_role text, actor uuid, lock_wait text, nobody uuid
) RETURNS SETOF room_users LANGUAGE plpgsql AS $$
DECLARE
    is_hidden boolean := EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = new_user);
    actor_role text;
    next_seq bigint;
BEGIN
    IF actor IS NOT NULL THEN
        SELECT room_users.role
        INTO actor_role
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.user_id = actor
            AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = actor)
        FOR SHARE;
    END IF;
    PERFORM 1 FROM rooms WHERE rooms.id = room FOR NO KEY UPDATE;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
        AND rooms.direct_key IS NULL
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = room)
        AND (
            actor IS NULL
            OR (actor = new_user AND new_role = 'member' AND NOT rooms.is_private)
            OR actor_role = 'admin'
            OR (actor_role = 'moderator' AND new_role = 'member')
        )
        AND (
            is_hidden
            OR NOT EXISTS (SELECT 1 FROM room_users WHERE room_users.room_id = room AND room_users.user_id = new_user)
        )
    RETURNING rooms.last_seq INTO next_seq;
    IF next_seq IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'joined', new_user, jsonb_build_object('role', new_role), now());
    RETURN QUERY
    INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq, joined_at)
    VALUES (room, CASE WHEN is_hidden THEN nobody ELSE new_user END, new_role, next_seq, next_seq, now())
    RETURNING room_users.*;
END
$$;

-- An admin stays. The membership is deleted first: of two calls the second one waits and finds none.
CREATE OR REPLACE FUNCTION hubbub_remove_member(room uuid, leaver uuid, OUT of_room uuid, OUT of_user uuid)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    next_seq bigint;
BEGIN
    DELETE FROM room_users
    USING rooms
    WHERE room_users.room_id = room
        AND room_users.user_id = leaver
        AND room_users.role <> 'admin'
        AND rooms.id = room
        AND rooms.direct_key IS NULL
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, leaver));
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'left', leaver, '{}', now());
    of_room := room;
    of_user := leaver;
    RETURN NEXT;
END
$$;

-- Each statement sees what the one before has waited for: two admins are locked in an order, and before the last member
-- leaves, the room, so that no join is in flight.
CREATE OR REPLACE FUNCTION hubbub_remove_admin(
    room uuid, leaver uuid, if_forced boolean, lock_wait text, OUT of_room uuid, OUT of_user uuid
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    hidden uuid[] := ARRAY(SELECT hubbub_deletions.id FROM hubbub_deletions);
    old_role text;
    next_seq bigint;
BEGIN
    IF room = ANY (hidden) OR leaver = ANY (hidden) THEN
        RETURN;
    END IF;
    PERFORM 1
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.role = 'admin'
        AND room_users.user_id <> ALL (hidden)
    ORDER BY room_users.user_id
    LIMIT 2
    FOR NO KEY UPDATE;
    SELECT room_users.role
    INTO old_role
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id = leaver
    FOR UPDATE;
    IF old_role = 'admin' AND NOT if_forced THEN
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.role = 'admin'
            AND room_users.user_id <> leaver
            AND room_users.user_id <> ALL (hidden);
        IF NOT FOUND THEN
            PERFORM 1 FROM rooms WHERE rooms.id = room FOR NO KEY UPDATE;
            PERFORM 1
            FROM room_users
            WHERE room_users.room_id = room
                AND room_users.user_id <> leaver
                AND room_users.user_id <> ALL (hidden);
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
    END IF;
    DELETE FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id = leaver;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'left', leaver, '{}', now());
    of_room := room;
    of_user := leaver;
    RETURN NEXT;
END
$$;

-- Both memberships are locked in the order of their ids. An admin who removes another one stays admin.
CREATE OR REPLACE FUNCTION hubbub_remove_member_by(
    room uuid, leaver uuid, actor uuid, lock_wait text, OUT of_room uuid, OUT of_user uuid
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    actor_role text;
    next_seq bigint;
BEGIN
    IF EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, leaver, actor)) THEN
        RETURN;
    END IF;
    PERFORM 1
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id IN (leaver, actor)
    ORDER BY room_users.user_id
    FOR NO KEY UPDATE;
    SELECT room_users.role
    INTO actor_role
    FROM room_users
    WHERE room_users.room_id = room
        AND room_users.user_id = actor;
    DELETE FROM room_users
    USING rooms
    WHERE room_users.room_id = room
        AND room_users.user_id = leaver
        AND rooms.id = room
        AND rooms.direct_key IS NULL
        AND (actor_role = 'admin' OR (actor_role = 'moderator' AND room_users.role = 'member'));
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'left', leaver, '{}', now());
    of_room := room;
    of_user := leaver;
    RETURN NEXT;
END
$$;

-- Without an actor an admin keeps the role, unless `if_admin`, which asks for another admin who stays. An actor is an
-- admin, or steps down by `if_admin`.
CREATE OR REPLACE FUNCTION hubbub_set_role(
    room uuid, holder uuid, new_role text, actor uuid, if_admin boolean, lock_wait text
) RETURNS SETOF room_users LANGUAGE plpgsql AS $$
DECLARE
    hidden uuid[] := ARRAY(SELECT hubbub_deletions.id FROM hubbub_deletions);
    actor_role text;
    has_other boolean := false;
    next_seq bigint;
    changed room_users%ROWTYPE;
BEGIN
    IF room = ANY (hidden) OR holder = ANY (hidden) OR actor = ANY (hidden) THEN
        RETURN;
    END IF;
    IF if_admin THEN
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.role = 'admin'
            AND room_users.user_id <> ALL (hidden)
        ORDER BY room_users.user_id
        LIMIT 2
        FOR NO KEY UPDATE;
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.role = 'admin'
            AND room_users.user_id <> holder
            AND room_users.user_id <> ALL (hidden);
        has_other := FOUND;
    ELSIF actor IS NOT NULL THEN
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.user_id IN (holder, actor)
        ORDER BY room_users.user_id
        FOR NO KEY UPDATE;
        SELECT room_users.role
        INTO actor_role
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.user_id = actor;
        IF actor_role IS DISTINCT FROM 'admin' THEN
            RETURN;
        END IF;
    END IF;
    UPDATE room_users
    SET role = new_role
    WHERE room_users.room_id = room
        AND room_users.user_id = holder
        AND room_users.role <> new_role
        AND CASE
            WHEN if_admin AND actor IS NULL THEN room_users.role <> 'admin' OR has_other
            WHEN if_admin THEN room_users.role = 'admin' AND has_other
            WHEN actor IS NULL THEN room_users.role <> 'admin'
            ELSE true
        END
    RETURNING room_users.* INTO changed;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'role_changed', holder, jsonb_build_object('role', new_role), now());
    RETURN NEXT changed;
END
$$;

CREATE OR REPLACE FUNCTION hubbub_update_member(room uuid, holder uuid, data text, lock_wait text)
RETURNS SETOF room_users LANGUAGE plpgsql AS $$
DECLARE
    next_seq bigint;
    changed room_users%ROWTYPE;
BEGIN
    UPDATE room_users
    SET metadata = data::jsonb
    WHERE room_users.room_id = room
        AND room_users.user_id = holder
        AND room_users.metadata IS DISTINCT FROM data::jsonb
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id IN (room, holder))
    RETURNING room_users.* INTO changed;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE rooms.id = room
    RETURNING rooms.last_seq INTO next_seq;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (room, next_seq, 'member_changed', holder, jsonb_build_object('metadata', data::jsonb), now());
    RETURN NEXT changed;
END
$$;

-- The memberships of the actor and of the user who is logged are locked, so that they cannot end before this is
-- committed.
CREATE OR REPLACE FUNCTION hubbub_update_room(
    room uuid,
    title text,
    about text,
    hidden boolean,
    changed_by uuid,
    sets_receipts boolean,
    receipts boolean,
    lock_wait text,
    actor uuid,
    sets_data boolean,
    data text
) RETURNS SETOF rooms LANGUAGE plpgsql AS $$
DECLARE
    changed rooms%ROWTYPE;
BEGIN
    IF actor IS NOT NULL THEN
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.user_id = actor
            AND room_users.role = 'admin'
            AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = actor)
        FOR SHARE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF changed_by IS NOT NULL THEN
        PERFORM 1
        FROM room_users
        WHERE room_users.room_id = room
            AND room_users.user_id = changed_by
            AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = changed_by)
        FOR KEY SHARE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    UPDATE rooms
    SET name = COALESCE(title, name),
        description = NULLIF(COALESCE(about, description), ''),
        is_private = COALESCE(hidden, is_private),
        keeps_receipts = CASE WHEN sets_receipts THEN receipts ELSE keeps_receipts END,
        metadata = CASE WHEN sets_data THEN data::jsonb ELSE metadata END,
        last_seq = last_seq + 1,
        updated_at = now()
    WHERE rooms.id = room
        AND NOT EXISTS (SELECT 1 FROM hubbub_deletions WHERE hubbub_deletions.id = room)
    RETURNING rooms.* INTO changed;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO room_events (room_id, seq, kind, user_id, payload, created_at)
    VALUES (
        room,
        changed.last_seq,
        'room_changed',
        changed_by,
        jsonb_build_object(
            'name', changed.name,
            'description', changed.description,
            'is_private', changed.is_private,
            'keeps_receipts', changed.keeps_receipts,
            'metadata', changed.metadata
        ),
        now()
    );
    RETURN NEXT changed;
END
$$;
