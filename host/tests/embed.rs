//! A host within a program that is not `handover`: it takes artifacts, serves and ends as that one
//! does. Without the harness of tests, since a host starts its own program again for preflight.

use std::{
    error::Error,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use handover::Host;

mod fixture;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    // Before it is prepared, no artifact could be tried.
    let refused = Host::builder().start();
    if let Some(code) = handover::prepare() {
        return code;
    }
    let refused = refused.map(|_| ()).map_err(|error| error.to_string());
    assert!(
        matches!(&refused, Err(error) if error.contains("call `handover::prepare`")),
        "{refused:?}"
    );
    match serves_an_artifact_and_ends() {
        Ok(()) => {
            println!("test serves_an_artifact_and_ends ... ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("test serves_an_artifact_and_ends ... FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serves_an_artifact_and_ends() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let plugins = folder.path().join("plugins");
    let builder = Host::builder()
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .plugins(&plugins)
        .state(&state);
    let host = builder.clone().start()?;
    let address: SocketAddr = host.addresses()[0].parse()?;
    assert_eq!(host.control(), state.join("control.sock"));

    // What is no artifact is refused, by a child of this program; what is one is served.
    put(b"no artifact", &plugins.join("bad.so"))?;
    until("the file is refused", || {
        plugins.join("bad.so.failed").exists()
    })?;
    put(
        &fs::read(fixture::build("hello")?)?,
        &plugins.join("hello.so"),
    )?;
    until("the app serves", || {
        get(address).is_ok_and(|answer| answer.ends_with("hello 1.0.0"))
    })?;

    host.shutdown();
    host.wait();
    assert!(TcpStream::connect(address).is_err(), "nobody listens");
    assert!(!state.join("control.sock").exists());

    // What was live is live again, in the same process.
    let host = builder.start()?;
    let answer = get(host.addresses()[0].parse()?)?;
    assert!(answer.ends_with("hello 1.0.0"), "{answer}");
    host.shutdown();
    host.wait();
    Ok(())
}

/// Renames a file into its place, as a drop folder wants it.
fn put(bytes: &[u8], path: &Path) -> Result<(), Box<dyn Error>> {
    let other = path.with_extension("part");
    fs::write(&other, bytes)?;
    Ok(fs::rename(other, path)?)
}

fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(format!("waited for in vain: {what}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn get(address: SocketAddr) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: embed.test\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
