"""Stand-in for a module that the source distribution of transformers leaves out: values unlike the defaults."""

config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "architectures": ["Other"],
    "id2label": {0: "zero", 1: "one"},
    "label2id": {"zero": 0, "one": 1},
    "problem_type": "regression",
    "dtype": "float16",
}
