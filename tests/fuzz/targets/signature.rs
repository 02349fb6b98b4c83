//! Texts that somebody says are keys and signatures of minisign, as a file has them and as a header
//! carries them.
#![no_main]

use handover::testing::{Key, Signature};
use handover_fuzz::file::MemoryFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let read = Signature::read(MemoryFile::new(input).path());
    if let Ok(signature) = Signature::from_header(input) {
        let again = Signature::from_header(signature.to_header().as_bytes());
        assert_eq!(again.expect("it was one"), signature);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        assert!(read.is_err(), "a signature is text");
        return;
    };
    let _ = text.parse::<Key>();
    match text.parse::<Signature>() {
        Ok(signature) => {
            assert_eq!(signature.as_str(), text);
            assert_eq!(read.expect("it is one"), Some(signature.clone()));
            let header = signature.to_header();
            assert_eq!(
                Signature::from_header(header.as_bytes()).expect("it is one"),
                signature
            );
        }
        Err(_) => assert!(read.is_err(), "the file says what the text does not"),
    }
});
