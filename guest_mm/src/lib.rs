//! The guest memory service.
