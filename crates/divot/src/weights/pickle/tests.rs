//! Tests of the stack machine on bytes.

use super::*;

#[track_caller]
fn refused(bytes: &[u8]) -> String {
    match read(&mut &bytes[..]) {
        Err(PickleError::RunsCode(name)) => name,
        other => panic!("{other:?}"),
    }
}

fn kind(bytes: &[u8]) -> io::ErrorKind {
    match read(&mut &bytes[..]) {
        Err(PickleError::Io(error)) => error.kind(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_found_in_every_protocol() {
    // pickle.dumps of an object whose __reduce__ is (os.system, ("true",)).
    let protocol_0 = b"cposix\nsystem\np0\n(Vtrue\np1\ntp2\nRp3\n.";
    let protocol_2 = b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.";
    let protocol_4 = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06\
        system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.";
    for pickle in [&protocol_0[..], protocol_2, protocol_4] {
        assert_eq!(refused(pickle), "os.system");
    }
}

#[test]
fn a_call_whose_result_is_dropped_is_found() {
    let pickle = b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00pass\x85R0}.";
    assert_eq!(refused(pickle), "builtins.exec");
}

#[test]
fn names_from_the_memo_and_hidden_ones_are_found() {
    let memo = b"\x8c\x02os\x940\x8c\x06system\x940h\x00h\x01\x93.";
    assert_eq!(refused(memo), "os.system");
    // Another value was pushed in between and removed again.
    let between = b"\x8c\x02os\x8c\x06system\x8c\x01x0\x93.";
    assert_eq!(refused(between), "os.system");
    // A name that is the result of a call is unknown.
    let computed = b"\x8c\x02oscmy\nname\n)R\x93.";
    assert!(refused(computed).contains("hidden"));
}

#[test]
fn what_checkpoints_name_is_allowed() {
    let pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01\
        ctorch._utils\n_rebuild_tensor_v2\nclightning.callbacks\nModelCheckpoint\n)\x81.";
    assert!(
        matches!(read(&mut &pickle[..]).unwrap().root, Value::Other(name) if &*name == "lightning.callbacks.ModelCheckpoint")
    );
}

#[test]
fn truncated_and_foreign_bytes_are_errors() {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    assert_eq!(kind(b"\x80\x02ccoll"), UnexpectedEof);
    assert_eq!(kind(b"X\xff\xff\xff\xffab"), UnexpectedEof);
    assert_eq!(kind(b"\xff"), InvalidData);
    // Missing data and missing marks.
    for bytes in [
        &b"\x8b\xff\xff\xff\xff"[..],
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(kind(bytes), UnexpectedEof);
    }
    for bytes in [
        &b"."[..],
        b"R.",
        b"t.",
        b"(R.",
        b"N\x86.",
        b"h\x00.",
        b"u.",
        b"}b.",
        b"(o.",
    ] {
        assert_eq!(kind(bytes), InvalidData, "{bytes:?}");
    }
}

/// Tuples nested a million deep, and dictionaries in each other.
#[test]
fn depth_is_limited() {
    let mut deep = b")".to_vec();
    deep.extend(std::iter::repeat_n(0x85, 1 << 20));
    deep.push(b'.');
    read(&mut &deep[..]).unwrap();
    let mut dicts = Vec::new();
    for _ in 0..1 << 20 {
        dicts.extend(b"}N");
    }
    dicts.push(b'N');
    dicts.extend(std::iter::repeat_n(b's', 1 << 20));
    dicts.push(b'.');
    assert_eq!(read(&mut &dicts[..]).unwrap().dicts.len(), 1 << 20);
}

/// A byte of input must not become a hundred bytes of memory.
#[test]
fn memory_is_limited() {
    let many = vec![b'N'; 64 << 20];
    assert_eq!(kind(&many), io::ErrorKind::InvalidData);
    let mut memo = b"N".to_vec();
    memo.resize(16 << 20, 0x94);
    assert_eq!(kind(&memo), io::ErrorKind::InvalidData);
}
