//! The configuration file.
#![no_main]

use handover::testing::{Config, RoutePrefix};
use handover_fuzz::file::MemoryFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match Config::read(MemoryFile::new(input).path()) {
        Ok(config) => {
            for (name, app) in &config.apps {
                assert_eq!(config.app(name).queue, app.queue);
                for route in &app.routes {
                    let again: RoutePrefix = route.to_string().parse().expect("it was one");
                    assert_eq!(again, *route);
                    assert!(route.matches(route.host.as_deref(), &route.path), "{route}");
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
