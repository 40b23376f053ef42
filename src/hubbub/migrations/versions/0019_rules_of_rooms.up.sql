-- Rules of rooms in a trigger for the columns that they are about, and shorter rules of messages.
--
-- PostgreSQL reads the text of every CHECK of a table anew in each statement that writes to the table. A message takes
-- the next number of its room, so each send read the rules of names, descriptions and metadata. The trigger is not called
-- for that. Its errors have the names of the former rules.
--
-- Each statement can be repeated, and locks one table for an instant. Messages are checked while the application runs.

CREATE OR REPLACE FUNCTION hubbub_check_room() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    broken text := CASE
        WHEN NOT NEW.name COLLATE "C" ~ '\S' THEN 'rooms_name_check'
        WHEN char_length(NEW.description) > 4000 THEN 'rooms_description_check'
        WHEN NEW.direct_key IS NOT NULL AND (octet_length(NEW.direct_key) <> 32 OR NOT NEW.is_private)
            THEN 'rooms_direct_key_check'
        WHEN jsonb_typeof(NEW.metadata) <> 'object' OR octet_length(NEW.metadata::text) > 65536
            THEN 'rooms_metadata_check'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE check_violation USING
            MESSAGE = format('new row for relation "rooms" violates the rule "%s"', broken),
            CONSTRAINT = broken,
            TABLE = TG_TABLE_NAME,
            SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER hubbub_check_room
    BEFORE INSERT OR UPDATE OF name, description, direct_key, is_private, metadata ON rooms
    FOR EACH ROW
    EXECUTE FUNCTION hubbub_check_room();

ALTER TABLE rooms
    DROP CONSTRAINT IF EXISTS rooms_name_check,
    DROP CONSTRAINT IF EXISTS rooms_description_check,
    DROP CONSTRAINT IF EXISTS rooms_direct_key_check,
    DROP CONSTRAINT IF EXISTS rooms_metadata_check;

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    ADD CONSTRAINT messages_content_check
        CHECK (
            CASE content
                WHEN '' THEN deleted_at IS NOT NULL OR metadata IS NOT NULL OR message_type <> 'text'
                ELSE deleted_at IS NULL AND char_length(content) <= 65536
            END
        ) NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_message_type_check,
    ADD CONSTRAINT messages_message_type_check
        CHECK (message_type::text = ANY ('{text,image,file}'::text[])) NOT VALID;

ALTER TABLE messages VALIDATE CONSTRAINT messages_content_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_message_type_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0019' WHERE version_num = '0018';

COMMIT;
