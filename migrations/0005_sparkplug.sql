-- What Sparkplug B's births said, and who lives. See worker/src/decode/sparkplug/births.rs.

-- Names and types of a birth's metrics, in effect from a time on. A row never changes. The device is
-- empty for the edge node itself.
CREATE TABLE penstock.sparkplug_birth (
  group_id  text NOT NULL,
  edge_node text NOT NULL,
  device    text NOT NULL,
  since     timestamptz NOT NULL,
  metrics   jsonb NOT NULL,
  PRIMARY KEY (group_id, edge_node, device, since)
);

CREATE TABLE penstock.sparkplug_state (
  group_id    text NOT NULL,
  edge_node   text NOT NULL,
  device      text NOT NULL,
  born_at     timestamptz NOT NULL,
  bd_seq      bigint,
  stale_since timestamptz,
  PRIMARY KEY (group_id, edge_node, device)
);

-- Under the names that their readings have.
CREATE VIEW penstock.sparkplug_nodes WITH (security_barrier) AS
  SELECT t.name AS tenant, s.edge_node AS site, coalesce(nullif(s.device, ''), s.edge_node) AS device,
         s.device = '' AS is_node, s.born_at, s.bd_seq, s.stale_since
  FROM penstock.sparkplug_state s
  JOIN penstock.my_tenant t ON t.name = s.group_id;
