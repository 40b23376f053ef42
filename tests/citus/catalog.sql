-- As much of the catalog of Citus as `hubbub distribute` uses, for a server without it: the tables are recorded as
-- distributed, and stay where they are.

CREATE TABLE pg_dist_node (
    nodeid integer GENERATED ALWAYS AS IDENTITY,
    groupid integer,
    isactive boolean,
    shouldhaveshards boolean,
    nodename text DEFAULT 'localhost',
    nodeport integer DEFAULT 5432,
    noderole text DEFAULT 'primary'
);

CREATE TABLE pg_dist_partition (logicalrelid regclass, partmethod "char");

CREATE TABLE pg_dist_object (classid oid, objid oid, distribution_argument_index integer);

INSERT INTO pg_dist_node (groupid, isactive, shouldhaveshards)
VALUES (0, true, false), (1, true, true), (2, true, true);

-- A node with port 1 refuses connections, and one with port 2 hangs.
CREATE FUNCTION citus_check_connection_to_node(name text, port integer) RETURNS boolean LANGUAGE sql AS $$
    SELECT CASE port WHEN 2 THEN pg_sleep(60) IS NULL ELSE port <> 1 END
$$;

CREATE FUNCTION create_reference_table(one regclass) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pg_dist_partition VALUES (one, 'n')
$$;

-- Citus refuses a foreign key between a table that is distributed and one that is not, a trigger, and a key without the
-- column.
CREATE FUNCTION create_distributed_table(
    one regclass, distribution_column text, colocate_with text DEFAULT 'default', shard_count integer DEFAULT NULL
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_constraint
        WHERE contype = 'f' AND one IN (conrelid, confrelid)
            AND NOT EXISTS (
                SELECT FROM pg_dist_partition WHERE logicalrelid = CASE conrelid WHEN one THEN confrelid ELSE conrelid END
            )
    ) THEN
        RAISE EXCEPTION '% has a foreign key', one;
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = one AND NOT tgisinternal) THEN
        RAISE EXCEPTION '% has a trigger', one;
    END IF;
    IF EXISTS (
        SELECT FROM pg_index
        JOIN pg_attribute ON attrelid = indrelid AND attname = distribution_column
        WHERE indrelid = one AND indisunique AND NOT attnum = ANY (indkey)
    ) THEN
        RAISE EXCEPTION '% has a unique index without %', one, distribution_column;
    END IF;
    INSERT INTO pg_dist_partition VALUES (one, 'h');
END
$$;

CREATE FUNCTION truncate_local_data_after_distributing_table(one regclass) RETURNS void LANGUAGE sql AS $$
    SELECT
$$;

CREATE FUNCTION create_distributed_function(
    one regprocedure, distribution_arg_name text, colocate_with text DEFAULT 'default'
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pg_dist_object
    SELECT 'pg_proc'::regclass, one, array_position(proargnames, distribution_arg_name) - 1
    FROM pg_proc WHERE oid = one
$$;

GRANT SELECT ON pg_dist_node, pg_dist_partition, pg_dist_object TO PUBLIC;
