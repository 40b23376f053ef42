CREATE TABLE public.hubbub_imports (
    digest bytea NOT NULL,
    lines bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    CONSTRAINT hubbub_imports_digest_check CHECK ((octet_length(digest) = 32)),
    CONSTRAINT hubbub_imports_lines_check CHECK ((lines > 0))
);

CREATE TABLE public.hubbub_schema_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.message_read_receipts (
    message_id uuid NOT NULL,
    user_id uuid NOT NULL,
    read_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    room_id uuid NOT NULL
);

CREATE TABLE public.messages (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    room_id uuid NOT NULL,
    user_id uuid,
    content text NOT NULL,
    message_type character varying(20) DEFAULT 'text'::character varying NOT NULL,
    is_edited boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    seq bigint NOT NULL,
    deleted_at timestamp with time zone,
    reply_to uuid,
    metadata jsonb,
    CONSTRAINT messages_content_check CHECK (
CASE
    WHEN (deleted_at IS NULL) THEN ((char_length(content) >= 1) AND (char_length(content) <= 20000))
    ELSE (content = ''::text)
END),
    CONSTRAINT messages_message_type_check CHECK ((message_type IN ('text', 'image', 'file'))),
    CONSTRAINT messages_metadata_check CHECK (((jsonb_typeof(metadata) = 'object'::text) AND (octet_length((metadata)::text) <= 65536))),
    CONSTRAINT messages_reply_to_check CHECK ((reply_to <> id)),
    CONSTRAINT messages_seq_check CHECK ((seq > 0))
)
WITH (autovacuum_vacuum_insert_scale_factor='0.02');

CREATE TABLE public.room_events (
    room_id uuid NOT NULL,
    seq bigint NOT NULL,
    kind character varying(20) NOT NULL,
    message_id uuid,
    user_id uuid,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    CONSTRAINT room_events_kind_check CHECK ((kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed'))),
    CONSTRAINT room_events_seq_check CHECK ((seq > 0))
);

CREATE TABLE public.room_users (
    room_id uuid NOT NULL,
    user_id uuid NOT NULL,
    joined_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    role character varying(20) DEFAULT 'member'::character varying NOT NULL,
    last_read_message_id uuid,
    last_read_seq bigint DEFAULT 0 NOT NULL,
    joined_seq bigint DEFAULT 0 NOT NULL,
    CONSTRAINT room_users_joined_seq_check CHECK ((joined_seq >= 0)),
    CONSTRAINT room_users_last_read_seq_check CHECK ((last_read_seq >= 0)),
    CONSTRAINT room_users_role_check CHECK ((role IN ('admin', 'moderator', 'member')))
);

CREATE TABLE public.rooms (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(100) NOT NULL,
    description text,
    is_private boolean DEFAULT false NOT NULL,
    created_by uuid,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    last_seq bigint DEFAULT 0 NOT NULL,
    direct_key bytea,
    keeps_receipts boolean,
    CONSTRAINT rooms_description_check CHECK ((char_length(description) <= 4000)),
    CONSTRAINT rooms_direct_key_check CHECK (((direct_key IS NULL) OR ((octet_length(direct_key) = 32) AND is_private))),
    CONSTRAINT rooms_last_seq_check CHECK ((last_seq >= 0)),
    CONSTRAINT rooms_name_check CHECK ((((name)::text COLLATE "C") ~ '\S'::text))
)
WITH (fillfactor='50');

CREATE TABLE public.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    email character varying(255) NOT NULL,
    username character varying(50) NOT NULL,
    password_hash character varying(255) NOT NULL,
    avatar_url character varying(500),
    is_online boolean DEFAULT false NOT NULL,
    last_seen timestamp with time zone,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    CONSTRAINT users_email_check CHECK (((POSITION(('@'::text) IN (email)) >= 2) AND (POSITION(('@'::text) IN (email)) <= (char_length((email)::text) - 1)))),
    CONSTRAINT users_password_hash_check CHECK (((password_hash)::text <> ''::text)),
    CONSTRAINT users_username_check CHECK ((((username)::text <> ''::text) AND (POSITION(('@'::text) IN (username)) = 0) AND (((username)::text COLLATE "C") !~ '^\s|\s$'::text)))
);

INSERT INTO public.hubbub_imports VALUES
	('\x259aa8ef98a8b91de574cd904138ef643240c23080cf24da4793a6f10a43fa9d', 7, '2026-11-28 19:55:31.814745+00');

INSERT INTO public.hubbub_schema_version VALUES
	('0012');

INSERT INTO public.message_read_receipts VALUES
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113efcdf7ece', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.803354+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-265a-772e-839e-55e06cc0f72e', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2653-71a8-9856-f9a128ac76fb', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-265d-7078-b39d-203fbe1819c0', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.806192+00', '01a223ba-2646-71cf-979e-b8fff75672ad');

INSERT INTO public.messages VALUES
	('01a223ba-2653-71a8-9856-f9a128ac76fb', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', 'Hello;
world', 'text', false, '2026-11-28 19:55:31.795453+00', '2026-11-28 19:55:31.795453+00', 6, NULL, NULL, NULL),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 0', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 8, NULL, NULL, '{"n": 0, "who": "cy"}'),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 2', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 10, NULL, NULL, '{"n": 2, "who": "cy"}'),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 3', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 11, NULL, NULL, '{"n": 3, "who": "cy"}'),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 4', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 12, NULL, NULL, '{"n": 4, "who": "cy"}'),
	('01a223ba-2654-74dd-99a1-113efcdf7ece', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263e-75ab-92d8-49179c9f3356', 'An edited answer', 'text', true, '2026-11-28 19:55:31.796561+00', '2026-11-28 19:55:31.801401+00', 7, NULL, '01a223ba-2653-71a8-9856-f9a128ac76fb', NULL),
	('01a223ba-2655-7584-b687-2e01952c0212', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', '', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.802178+00', 9, '2026-11-28 19:55:31.802178+00', NULL, NULL),
	('01a223ba-265a-772e-839e-55e06cc0f72e', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', '', 'text', false, '2026-11-28 19:55:31.802806+00', '2026-11-28 19:55:31.804985+00', 16, '2026-11-28 19:55:31.804985+00', NULL, NULL),
	('01a223ba-265d-7078-b39d-203e8eb42e80', '01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-25f9-7394-b743-97e55484c360', 'just us', 'text', false, '2026-11-28 19:55:31.805453+00', '2026-11-28 19:55:31.805453+00', 3, NULL, NULL, NULL),
	('01a223ba-265d-7078-b39d-203fbe1819c0', '01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-263e-75ab-92d8-49179c9f3356', 'yes', 'text', false, '2026-11-28 19:55:31.805822+00', '2026-11-28 19:55:31.805822+00', 4, NULL, '01a223ba-265d-7078-b39d-203e8eb42e80', NULL),
	('01a223ba-265e-773f-af44-8e37aacb9dfc', '01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263f-74f7-a42a-80810a3af051', 'in private', 'text', false, '2026-11-28 19:55:31.806633+00', '2026-11-28 19:55:31.806633+00', 3, NULL, NULL, NULL),
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-2643-70db-aa95-929cc9779b02', NULL, 'https://example.org/i.png', 'image', false, '2026-11-28 19:55:31.801+00', '2026-11-28 19:55:31.801+00', 13, NULL, NULL, NULL);

INSERT INTO public.room_events VALUES
	('01a223ba-2643-70db-aa95-929cc9779b02', 1, 'joined', NULL, '01a223ba-25f9-7394-b743-97e55484c360', '{"role": "admin"}', '2026-11-28 19:55:31.779561+00'),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', 1, 'joined', NULL, '01a223ba-263e-75ab-92d8-49179c9f3356', '{"role": "admin"}', '2026-11-28 19:55:31.781295+00'),
	('01a223ba-2645-72ea-958c-6d3ca0427717', 1, 'joined', NULL, '01a223ba-263f-74f7-a42a-80810a3af051', '{"role": "admin"}', '2026-11-28 19:55:31.781642+00'),
	('01a223ba-2646-71cf-979e-b8fff75672ad', 1, 'joined', NULL, '01a223ba-25f9-7394-b743-97e55484c360', '{"role": "member"}', '2026-11-28 19:55:31.782205+00'),
	('01a223ba-2646-71cf-979e-b8fff75672ad', 2, 'joined', NULL, '01a223ba-263e-75ab-92d8-49179c9f3356', '{"role": "member"}', '2026-11-28 19:55:31.782205+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 2, 'joined', NULL, '01a223ba-263e-75ab-92d8-49179c9f3356', '{"role": "member"}', '2026-11-28 19:55:31.792288+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 3, 'joined', NULL, '01a223ba-263f-74f7-a42a-80810a3af051', '{"role": "member"}', '2026-11-28 19:55:31.793141+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 4, 'joined', NULL, '01a223ba-263f-74f7-a42a-8082184eddca', '{"role": "member"}', '2026-11-28 19:55:31.793722+00'),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', 2, 'joined', NULL, '01a223ba-263f-74f7-a42a-80810a3af051', '{"role": "member"}', '2026-11-28 19:55:31.79419+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 5, 'role_changed', NULL, '01a223ba-263e-75ab-92d8-49179c9f3356', '{"role": "moderator"}', '2026-11-28 19:55:31.794741+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 14, 'edited', '01a223ba-2654-74dd-99a1-113efcdf7ece', '01a223ba-263e-75ab-92d8-49179c9f3356', '{}', '2026-11-28 19:55:31.801401+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 15, 'deleted', '01a223ba-2655-7584-b687-2e01952c0212', '01a223ba-263f-74f7-a42a-80810a3af051', '{}', '2026-11-28 19:55:31.802178+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 17, 'deleted', '01a223ba-265a-772e-839e-55e06cc0f72e', '01a223ba-25f9-7394-b743-97e55484c360', '{}', '2026-11-28 19:55:31.804985+00'),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', 4, 'room_changed', NULL, NULL, '{"name": "closed, renamed", "is_private": true, "description": null, "keeps_receipts": false}', '2026-11-28 19:55:31.806915+00'),
	('01a223ba-2643-70db-aa95-929cc9779b02', 18, 'left', NULL, '01a223ba-263f-74f7-a42a-8082184eddca', '{}', '2026-11-28 19:55:31.807435+00');

INSERT INTO public.room_users VALUES
	('01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.781295+00', 'admin', NULL, 1, 1),
	('01a223ba-2645-72ea-958c-6d3ca0427717', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.781642+00', 'admin', NULL, 1, 1),
	('01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.782205+00', 'member', NULL, 2, 2),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.793141+00', 'member', NULL, 3, 3),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.79419+00', 'member', NULL, 2, 2),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.779561+00', 'admin', '01a223ba-2658-7521-8328-1b55d0cbc79e', 13, 1),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.792288+00', 'moderator', '01a223ba-265a-772e-839e-55e06cc0f72e', 16, 2),
	('01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.782205+00', 'member', '01a223ba-265d-7078-b39d-203fbe1819c0', 4, 1);

INSERT INTO public.rooms VALUES
	('01a223ba-2645-72ea-958c-6d3ca0427717', 'empty', NULL, false, '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.781642+00', '2026-11-28 19:55:31.781642+00', 1, NULL, NULL),
	('01a223ba-2646-71cf-979e-b8fff75672ad', 'direct', NULL, true, '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.782205+00', '2026-11-28 19:55:31.782205+00', 4, '\xaa52dbda941dc344530d5405f953d4787f27f6b98259f683cb1e6d88a1474f4f', NULL),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', 'closed, renamed', NULL, true, '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.781295+00', '2026-11-28 19:55:31.806915+00', 4, NULL, false),
	('01a223ba-2643-70db-aa95-929cc9779b02', 'engine-room', 'steam, ☃ and ''quotes''; semicolons', false, '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.779561+00', '2026-11-28 19:55:31.779561+00', 18, NULL, NULL);

INSERT INTO public.users VALUES
	('01a223ba-263e-75ab-92d8-49179c9f3356', 'Bob@example.org', 'Bob', 'not a hash', NULL, false, NULL, '2026-11-28 19:55:31.775033+00', '2026-11-28 19:55:31.775033+00'),
	('01a223ba-263f-74f7-a42a-80810a3af051', 'Cy@example.org', 'Cy', 'not a hash', NULL, false, NULL, '2026-11-28 19:55:31.775356+00', '2026-11-28 19:55:31.775356+00'),
	('01a223ba-25f9-7394-b743-97e55484c360', 'Ada@example.org', 'Ada', 'not a hash', 'https://example.org/ada.png', false, NULL, '2026-11-28 19:55:31.773342+00', '2026-11-28 19:55:31.775719+00');

ALTER TABLE ONLY public.hubbub_imports
    ADD CONSTRAINT hubbub_imports_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY public.hubbub_schema_version
    ADD CONSTRAINT hubbub_schema_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT idx_messages_room_id UNIQUE (room_id, seq) INCLUDE (user_id, created_at, deleted_at);

ALTER TABLE ONLY public.message_read_receipts
    ADD CONSTRAINT message_read_receipts_pkey PRIMARY KEY (message_id, user_id);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.room_events
    ADD CONSTRAINT room_events_pkey PRIMARY KEY (room_id, seq);

ALTER TABLE ONLY public.room_users
    ADD CONSTRAINT room_users_pkey PRIMARY KEY (room_id, user_id);

ALTER TABLE ONLY public.rooms
    ADD CONSTRAINT rooms_direct_key_key UNIQUE (direct_key);

ALTER TABLE ONLY public.rooms
    ADD CONSTRAINT rooms_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE INDEX idx_message_read_receipts_user_id ON public.message_read_receipts USING btree (user_id);

CREATE INDEX idx_messages_created_at ON public.messages USING brin (created_at);

CREATE INDEX idx_messages_user_id ON public.messages USING btree (user_id, created_at DESC, id DESC);

CREATE INDEX idx_room_users_last_read_message_id ON public.room_users USING btree (last_read_message_id) WHERE (last_read_message_id IS NOT NULL);

CREATE INDEX idx_room_users_user_id ON public.room_users USING btree (user_id, room_id);

CREATE INDEX idx_rooms_created_by ON public.rooms USING btree (created_by);

CREATE INDEX idx_rooms_name ON public.rooms USING btree (name, id) WHERE (NOT is_private);

CREATE UNIQUE INDEX idx_users_email ON public.users USING btree (lower((email)::text));

CREATE UNIQUE INDEX idx_users_username ON public.users USING btree (lower((username)::text));

ALTER TABLE ONLY public.message_read_receipts
    ADD CONSTRAINT message_read_receipts_message_id_fkey FOREIGN KEY (message_id) REFERENCES public.messages(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.message_read_receipts
    ADD CONSTRAINT message_read_receipts_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_room_id_fkey FOREIGN KEY (room_id) REFERENCES public.rooms(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.room_events
    ADD CONSTRAINT room_events_room_id_fkey FOREIGN KEY (room_id) REFERENCES public.rooms(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.room_users
    ADD CONSTRAINT room_users_last_read_message_id_fkey FOREIGN KEY (last_read_message_id) REFERENCES public.messages(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.room_users
    ADD CONSTRAINT room_users_room_id_fkey FOREIGN KEY (room_id) REFERENCES public.rooms(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.room_users
    ADD CONSTRAINT room_users_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.rooms
    ADD CONSTRAINT rooms_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(id) ON DELETE SET NULL;
