fn main() {
    env_logger::init();
    let pid: i32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let locals = std::env::args().nth(2).map_or(0, |s| s.parse().unwrap());
    let looked = hangscope::look::live(pid, &hangscope::look::Options { locals, ..Default::default() }).unwrap();
    if let Some(e) = looked.error {
        eprintln!("{e:?}");
    }
    println!("{}", serde_json::to_string_pretty(&looked.process).unwrap());
}
