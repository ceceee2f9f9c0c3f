//! The Penstock manifests.
