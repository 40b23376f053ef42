CREATE TABLE public.hubbub_schema_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.message_read_receipts (
    message_id uuid NOT NULL,
    user_id uuid NOT NULL,
    read_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    room_id uuid NOT NULL
);

CREATE TABLE public.messages (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    room_id uuid NOT NULL,
    user_id uuid,
    content text NOT NULL,
    message_type character varying(20) DEFAULT 'text'::character varying,
    is_edited boolean DEFAULT false,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    seq bigint NOT NULL,
    deleted_at timestamp with time zone
);

CREATE TABLE public.room_events (
    room_id uuid NOT NULL,
    seq bigint NOT NULL,
    kind character varying(20) NOT NULL,
    message_id uuid,
    user_id uuid,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);

CREATE TABLE public.room_users (
    room_id uuid NOT NULL,
    user_id uuid NOT NULL,
    joined_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    role character varying(20) DEFAULT 'member'::character varying,
    last_read_message_id uuid,
    last_read_seq bigint DEFAULT 0 NOT NULL
);

CREATE TABLE public.rooms (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(100) NOT NULL,
    description text,
    is_private boolean DEFAULT false,
    created_by uuid,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    last_seq bigint DEFAULT 0 NOT NULL,
    direct_key bytea
);

CREATE TABLE public.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    email character varying(255) NOT NULL,
    username character varying(50) NOT NULL,
    password_hash character varying(255) NOT NULL,
    avatar_url character varying(500),
    is_online boolean DEFAULT false,
    last_seen timestamp with time zone,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP
);

INSERT INTO public.hubbub_schema_version VALUES
	('0008');

INSERT INTO public.message_read_receipts VALUES
	('01a223ba-265a-772e-839e-55e06cc0f72e', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2653-71a8-9856-f9a128ac76fb', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.804513+00', '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-2654-74dd-99a1-113efcdf7ece', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2643-70db-aa95-929cc9779b02'),
	('01a223ba-265d-7078-b39d-203fbe1819c0', '01a223ba-25f9-7394-b743-97e55484c360', NULL, '01a223ba-2646-71cf-979e-b8fff75672ad');

INSERT INTO public.messages VALUES
	('01a223ba-2653-71a8-9856-f9a128ac76fb', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', 'Hello;
world', 'text', false, '2026-11-28 19:55:31.795453+00', '2026-11-28 19:55:31.795453+00', 6, NULL),
	('01a223ba-2654-74dd-99a1-113f031897b5', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 0', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 8, NULL),
	('01a223ba-2655-7584-b687-2e0282b32d0a', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 2', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 10, NULL),
	('01a223ba-2655-7584-b687-2e0457201def', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 4', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 12, NULL),
	('01a223ba-2654-74dd-99a1-113efcdf7ece', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263e-75ab-92d8-49179c9f3356', 'An edited answer', 'text', true, '2026-11-28 19:55:31.796561+00', '2026-11-28 19:55:31.801401+00', 7, NULL),
	('01a223ba-2655-7584-b687-2e01952c0212', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', '', 'text', false, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.802178+00', 9, '2026-11-28 19:55:31.802178+00'),
	('01a223ba-265a-772e-839e-55e06cc0f72e', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', '', 'text', false, '2026-11-28 19:55:31.802806+00', '2026-11-28 19:55:31.804985+00', 16, '2026-11-28 19:55:31.804985+00'),
	('01a223ba-265d-7078-b39d-203e8eb42e80', '01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-25f9-7394-b743-97e55484c360', 'just us', 'text', false, '2026-11-28 19:55:31.805453+00', '2026-11-28 19:55:31.805453+00', 3, NULL),
	('01a223ba-265d-7078-b39d-203fbe1819c0', '01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-263e-75ab-92d8-49179c9f3356', 'yes', 'text', false, '2026-11-28 19:55:31.805822+00', '2026-11-28 19:55:31.805822+00', 4, NULL),
	('01a223ba-265e-773f-af44-8e37aacb9dfc', '01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263f-74f7-a42a-80810a3af051', 'in private', 'text', false, '2026-11-28 19:55:31.806633+00', '2026-11-28 19:55:31.806633+00', 3, NULL),
	('01a223ba-2658-7521-8328-1b55d0cbc79e', '01a223ba-2643-70db-aa95-929cc9779b02', NULL, 'https://example.org/i.png', 'image', false, '2026-11-28 19:55:31.801+00', '2026-11-28 19:55:31.801+00', 13, NULL),
	('01a223ba-2655-7584-b687-2e03473f3114', '01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', 'number 3', NULL, NULL, '2026-11-28 19:55:31.800065+00', '2026-11-28 19:55:31.800065+00', 11, NULL);

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
	('01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.781295+00', 'admin', NULL, 1),
	('01a223ba-2645-72ea-958c-6d3ca0427717', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.781642+00', 'admin', NULL, 1),
	('01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.782205+00', 'member', NULL, 2),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.793141+00', 'member', NULL, 3),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.79419+00', 'member', NULL, 2),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.779561+00', 'admin', '01a223ba-2658-7521-8328-1b55d0cbc79e', 13),
	('01a223ba-2643-70db-aa95-929cc9779b02', '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.792288+00', 'moderator', '01a223ba-265a-772e-839e-55e06cc0f72e', 16),
	('01a223ba-2646-71cf-979e-b8fff75672ad', '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.782205+00', 'member', '01a223ba-265d-7078-b39d-203fbe1819c0', 4);

INSERT INTO public.rooms VALUES
	('01a223ba-2646-71cf-979e-b8fff75672ad', 'direct', NULL, true, '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.782205+00', '2026-11-28 19:55:31.782205+00', 4, '\xaa52dbda941dc344530d5405f953d4787f27f6b98259f683cb1e6d88a1474f4f'),
	('01a223ba-2645-72ea-958c-6d3baa3e004c', 'closed, renamed', NULL, true, '01a223ba-263e-75ab-92d8-49179c9f3356', '2026-11-28 19:55:31.781295+00', '2026-11-28 19:55:31.806915+00', 4, NULL),
	('01a223ba-2643-70db-aa95-929cc9779b02', 'engine-room', 'steam, ☃ and ''quotes''; semicolons', false, '01a223ba-25f9-7394-b743-97e55484c360', '2026-11-28 19:55:31.779561+00', '2026-11-28 19:55:31.779561+00', 18, NULL),
	('01a223ba-2645-72ea-958c-6d3ca0427717', 'empty', NULL, NULL, '01a223ba-263f-74f7-a42a-80810a3af051', '2026-11-28 19:55:31.781642+00', NULL, 1, NULL);

INSERT INTO public.users VALUES
	('01a223ba-263e-75ab-92d8-49179c9f3356', 'Bob@example.org', 'Bob', 'not a hash', NULL, false, NULL, '2026-11-28 19:55:31.775033+00', '2026-11-28 19:55:31.775033+00'),
	('01a223ba-263f-74f7-a42a-80810a3af051', 'Cy@example.org', 'Cy', 'not a hash', NULL, false, NULL, '2026-11-28 19:55:31.775356+00', '2026-11-28 19:55:31.775356+00'),
	('01a223ba-25f9-7394-b743-97e55484c360', 'Ada@example.org', 'Ada', 'not a hash', 'https://example.org/ada.png', false, NULL, '2026-11-28 19:55:31.773342+00', '2026-11-28 19:55:31.775719+00'),
	('ab61b426-45bc-49a5-a906-503ad1da0e75', 'eve@example.org', 'eve', 'not a hash', NULL, NULL, NULL, NULL, '2026-11-28 19:55:31.942976+00');

ALTER TABLE ONLY public.hubbub_schema_version
    ADD CONSTRAINT hubbub_schema_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT idx_messages_room_id UNIQUE (room_id, seq);

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
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_username_key UNIQUE (username);

CREATE INDEX idx_messages_created_at ON public.messages USING btree (created_at DESC);

CREATE INDEX idx_messages_user_id ON public.messages USING btree (user_id);

CREATE INDEX idx_room_users_last_read_message_id ON public.room_users USING btree (last_read_message_id) WHERE (last_read_message_id IS NOT NULL);

CREATE INDEX idx_room_users_user_id ON public.room_users USING btree (user_id);

CREATE INDEX idx_rooms_created_by ON public.rooms USING btree (created_by);

CREATE INDEX idx_rooms_name ON public.rooms USING btree (name);

CREATE INDEX idx_users_email ON public.users USING btree (email);

CREATE INDEX idx_users_username ON public.users USING btree (username);

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
