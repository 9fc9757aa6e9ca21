"""Recording a forward pass: module hooks, dispatch modes, and the operators made of them."""
