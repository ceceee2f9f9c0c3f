-- Group roles and what they may do. Run after the migrations each time, so that a role which could
-- not be made the first time is granted its rights the next.

-- Roles belong to the whole server: another database's migration may be making them now.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['penstock_worker', 'penstock_reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      EXCEPTION
        WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN NULL;
      END;
    END IF;
  END LOOP;

  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'penstock_worker') THEN
    GRANT USAGE ON SCHEMA penstock TO penstock_worker;
    GRANT SELECT ON penstock._sqlx_migrations, penstock.horizon TO penstock_worker;
    GRANT SELECT, INSERT ON penstock.device, penstock.sample, penstock.message, penstock.event
      TO penstock_worker;
    GRANT SELECT, INSERT, UPDATE ON penstock.tenant, penstock.series, penstock.command_ack, penstock.dead_letter,
      penstock.dead_payload TO penstock_worker;
    GRANT SELECT, INSERT, UPDATE, DELETE ON penstock.shard_lease, penstock.shard_instance TO penstock_worker;
    GRANT SELECT, INSERT, UPDATE, DELETE ON penstock.sparkplug_birth, penstock.sparkplug_state TO penstock_worker;
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO penstock_worker', current_database());
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'penstock_reader') THEN
    FOR name IN SELECT viewname FROM pg_views WHERE schemaname = 'penstock' AND viewname LIKE 'readings\_%' LOOP
      EXECUTE format('GRANT SELECT ON penstock.%I TO penstock_reader', name);
    END LOOP;
    GRANT USAGE ON SCHEMA penstock TO penstock_reader;
    GRANT SELECT ON penstock.my_tenant, penstock.readings, penstock.events, penstock.messages, penstock.dead_letters,
      penstock.ts_measure, penstock.cmd_ack, penstock.ingest_errors TO penstock_reader;
    GRANT SELECT ON penstock.sparkplug_nodes TO penstock_reader;
  END IF;
END $$;
