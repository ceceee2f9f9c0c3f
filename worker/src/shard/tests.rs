use uuid::Uuid;

use super::*;
use crate::settings::Sources;

/// A shard whose broker and database refuse connections.
pub(crate) fn lonely() -> Shard {
    without_database(1)
}

/// A shard whose broker has this port on loopback, and whose database refuses connections.
pub(crate) fn without_database(broker: u16) -> Shard {
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources {
        manifest: folder.path().join("plant.yaml"),
        plan: None,
        secrets: folder.path().to_owned(),
        shard: 0,
    };
    let manifest = include_str!("../../../examples/worker.yaml")
        .replace("127.0.0.1:1883", &format!("127.0.0.1:{broker}"));
    std::fs::write(&sources.manifest, manifest).unwrap();
    std::fs::create_dir(folder.path().join("timescale")).unwrap();
    std::fs::write(folder.path().join("timescale/url"), "postgres://worker@127.0.0.1:1/plant").unwrap();
    let settings = sources.settings().unwrap();
    let (_, access) = watch::channel(settings.access.clone());
    let (_, terms) = watch::channel(Arc::clone(&settings.terms));
    let me = Me { instance: "test".to_owned(), incarnation: Uuid::nil() };
    Shard::new(settings, (access, terms), me, Handle::current()).unwrap()
}
