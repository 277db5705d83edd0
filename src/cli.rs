//! What users type: clap's definitions, nothing else.
